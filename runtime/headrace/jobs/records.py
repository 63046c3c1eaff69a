"""What is written of a job beside its parts, as it is read again."""

from __future__ import annotations

import json

from pydantic import ValidationError

from headrace.errors import InvalidJob
from headrace.jobs.manifest import FORMAT, Done, Manifest

OWN, REJECTS = "_headrace", "_rejects"
"""Below the output: what is not for who reads it, and the rows that are in no part."""


def rejects_path(split: int) -> str:
    """Where the rejected rows of a split are told, below the output."""
    return f"{REJECTS}/part-{split:05}.jsonl"


def manifest_of(content: bytes, where: object) -> Manifest:
    """The manifest that was written at `where`.

    Raises:
        InvalidJob: it is none, or one of another release.
    """
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise InvalidJob(
                f"{where} is of format {found['format']}, and this release writes {FORMAT}: go on with the release "
                "that began the job, or begin it anew in another directory"
            )
        return Manifest.model_validate(found)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidJob(f"{where} is no manifest: {_first_line(error)}; begin the job anew in another directory") from None


def done_of(content: bytes, where: object) -> Done:
    """The record of a split that was written at `where`.

    Raises:
        InvalidJob: it is none.
    """
    try:
        return Done.model_validate_json(content)
    except ValidationError as error:
        raise unreadable(where, error) from None


def unreadable(where: object, error: Exception) -> InvalidJob:
    """A record that cannot be read."""
    return InvalidJob(f"{where} is no record of a split: {_first_line(error)}; remove it, and the split is made again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
