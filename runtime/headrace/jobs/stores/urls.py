"""What is in an object store is known by a URL, `s3://bucket/a/name`, where on disk it is a path."""

from __future__ import annotations

from importlib.util import find_spec

from headrace.errors import InvalidJob

SCHEMES = ("s3", "gs")


def is_url(where: str) -> bool:
    """Whether something is, or would be, in an object store.

    Raises:
        InvalidJob: it is in one that is not known, or what stores are asked by is not installed.
    """
    scheme, sign, rest = where.partition("://")
    if not sign or "/" in scheme:
        return False
    if scheme not in SCHEMES or not rest.strip("/"):
        known = " or ".join(f"{scheme}://BUCKET/NAME" for scheme in SCHEMES)
        raise InvalidJob(
            f"{where} is in no object store that is known here: name it as {known}; other input can be read by "
            "BatchJob(…, filesystem=…), and other output goes to a directory first"
        )
    if find_spec("obstore") is None:
        raise InvalidJob(f"{where} is in an object store, and these need obstore: pip install 'headrace[stores]'")
    return True


def split_url(url: str) -> tuple[str, str]:
    """The bucket, with its scheme, and the name in it."""
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    return f"{scheme}://{bucket}", name.strip("/")
