"""The objects of stores, each known by its URL.

What changes something says what it expects to find: nothing, or what it has seen there. So it can be asked again when an answer
was lost: either it has not taken effect, or what is there is what was to be.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from headrace.errors import JobFailed
from headrace.jobs.stores.urls import split_url

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore import UpdateVersion as Version
    from obstore.store import ObjectStore
    from typing_extensions import Buffer

T = TypeVar("T")

_RETRIES = 3
"""By the client itself, of what can be sent again as it is."""
_PAUSES = (0.5, 2.0, 8.0, 20.0)
"""Seconds before a question is asked again that a store has not answered; of one that never has, none is."""
_PIECE = 8 << 20
_SECOND_NS = 1_000_000_000
_STATUS = re.compile(r"status code: (\d+)([A-Za-z ]*)")
_CODE, _MESSAGE = re.compile(r"<Code>(.*?)</Code>"), re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_NO_CREDENTIALS = re.compile(r"Missing AccessKeyId|Missing SecretAccessKey|/latest/api/token|TokenRequest")
"""The client looks for those of a machine in a cloud when it is given none."""
_SAID_BY = {
    "s3": ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT_KEY"),
}
"""The variables of credentials, and of the endpoint."""
_SILENT = (("TimedOut", "time out"), ("Connection refused", "connection refused"), ("kind: Connect", "no connection"))
"""What its client says in many lines, and what that is in few words."""


class Object(NamedTuple):
    """An object as a store lists it. `modified_ns` is since 1970, in whole seconds: not every answer has more of them."""

    url: str
    size: int
    modified_ns: int
    version: Version


class Objects:
    """The objects of all stores that can be reached, by the credentials and endpoints that the environment says.

    Every method raises JobFailed when a store cannot be reached, or says no.

    Args:
        seconds: what a request may take, its data included.
    """

    def __init__(self, seconds: float = 600.0) -> None:
        self._seconds = seconds
        self._stores: dict[str, ObjectStore] = {}
        self._heard: set[str] = set()

    def find(self, url: str) -> Object | None:
        """An object, if it is there."""
        try:
            return _object(url, self._ask(url, lambda store, name: obstore.head(store, name)))
        except FileNotFoundError:
            return None

    def below(self, url: str) -> list[Object]:
        """All objects whose names begin with this one, and a slash."""
        bucket, _ = split_url(url)
        found = self._ask(url, lambda store, name: [one for some in obstore.list(store, name or None) for one in some])
        return [_object(f"{bucket}/{one['path']}", one) for one in found]

    def has_below(self, url: str) -> bool:
        """Whether there is one."""
        return self._ask(url, lambda store, name: any(obstore.list(store, name or None, chunk_size=1)))

    def read(self, url: str) -> tuple[bytes, Version]:
        """What is in an object, and of which version that is.

        Raises:
            FileNotFoundError: it is not there.
        """

        def read(store: ObjectStore, name: str) -> tuple[bytes, Version]:
            answer = obstore.get(store, name)
            return answer.bytes().to_bytes(), _version(answer.meta)

        return self._ask(url, read)

    def read_range(self, one: Object, first: int, last: int) -> bytes:
        """Bytes of an object.

        Raises:
            OSError: it is not there any more, or is not the one that was found.
        """
        options: Any = {"range": (first, last), "if_match": one.version.get("e_tag")}
        try:
            return self._ask(one.url, lambda store, name: obstore.get(store, name, options=options).bytes().to_bytes())
        except PreconditionError:
            raise OSError(f"{one.url} was written anew") from None

    def create(self, url: str, content: Buffer) -> Version | None:
        """Put an object where there is none; None if there is another one."""
        try:
            return _version(self._ask(url, lambda store, name: obstore.put(store, name, content, mode="create")))
        except AlreadyExistsError:
            return self._same(url, content)

    def replace(self, url: str, content: Buffer, version: Version) -> Version | None:
        """Put an object in the place of one that was seen; None if that is not there any more."""
        try:
            return _version(self._ask(url, lambda store, name: obstore.put(store, name, content, mode=version)))
        except PreconditionError:
            return self._same(url, content)

    def remove(self, url: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(url, lambda store, name: obstore.delete(store, name))

    def _same(self, url: str, content: Buffer) -> Version | None:
        """What is there, if it is what was to be: the answer to an upload was lost, or another run has made the same."""
        wanted = memoryview(content)

        def same(store: ObjectStore, name: str) -> Version | None:
            answer = obstore.get(store, name)
            if answer.meta["size"] != wanted.nbytes:
                return None
            first = 0
            for piece in answer.stream(min_chunk_size=_PIECE):
                data = memoryview(piece)
                if wanted[first : first + len(data)] != data:
                    return None
                first += len(data)
            return _version(answer.meta)

        try:
            return self._ask(url, same)
        except FileNotFoundError:
            return None

    def _ask(self, url: str, question: Callable[[ObjectStore, str], T]) -> T:
        """What a store says to a question that may be asked twice."""
        bucket, name = split_url(url)
        pauses = iter(_PAUSES if bucket in self._heard else ())
        while True:
            try:
                answer = question(self._store(bucket), name)
            except BaseError as error:
                if isinstance(error, (AlreadyExistsError, PreconditionError)):
                    self._heard.add(bucket)
                    raise
                pause = None if _is_final(error) else next(pauses, None)
                if pause is None:
                    raise JobFailed(_told(url, error)) from error
                time.sleep(pause)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise JobFailed(_told(url, error)) from error
                self._heard.add(bucket)
                raise
            else:
                self._heard.add(bucket)
                return answer

    def _store(self, bucket: str) -> ObjectStore:
        if bucket not in self._stores:
            retries: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=self._seconds)}
            # Whoever names an endpoint by http:// means it.
            client: Any = {"timeout": timedelta(seconds=self._seconds), "allow_http": True}
            self._stores[bucket] = from_url(bucket, client_options=client, retry_config=retries)
        return self._stores[bucket]


def _object(url: str, listed: ObjectMeta) -> Object:
    return Object(url, listed["size"], int(listed["last_modified"].timestamp()) * _SECOND_NS, _version(listed))


def _version(seen: Mapping[str, Any]) -> Version:
    # S3 tells versions by their ETag, Google by a number beside it.
    return {key: seen[key] for key in ("e_tag", "version") if seen.get(key) is not None}  # type: ignore[return-value]


def _is_final(error: BaseError) -> bool:
    """Whether asking again is of no use: the store has understood the question."""
    status = _STATUS.search(str(error))
    return status is not None and status[1].startswith("4") and status[1] not in ("408", "409", "429")


def _told(url: str, error: Exception) -> str:
    """One line of what a store has said, or that it says nothing, and what can be done."""
    text = str(error)
    credentials, endpoint = _SAID_BY[url.partition("://")[0]]
    if _NO_CREDENTIALS.search(text):
        return f"{url}: there are no credentials for the store. Say them, as by {credentials}"
    status, code, message = _STATUS.search(text), _CODE.search(text), _MESSAGE.search(text)
    if status is None:
        reason = next((words for sign, words in _SILENT if sign in text), text.splitlines()[0].rpartition(" - ")[2])
        return f"{url}: the store does not answer ({reason}). See that it can be reached, and where it is ({endpoint})"
    said = f"{url}: the store says {status[1]} {status[2].strip()}"
    said += f", {code[1]}" if code else ""
    said += f": {message[1].rstrip('.')}" if message else ""
    if code and code[1] == "NoSuchBucket":
        said += ". Make the bucket, or name another"
    elif status[1] in ("401", "403"):
        said += f". See the credentials ({credentials}), and what they allow"
    return said
