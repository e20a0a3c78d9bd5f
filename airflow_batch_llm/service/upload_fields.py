"""The fields of ``POST /v1/files``, checked one by one as they come, so that a wrong one is refused at once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import FilePurpose
from airflow_batch_llm.wire import LEAST_EXPIRY_SECONDS, MOST_EXPIRY_SECONDS, FileExpiry

MOST_FILENAME: Final = 512

_ANCHOR: Final = "expires_after[anchor]"
_SECONDS: Final = "expires_after[seconds]"
_WHOLE: Final = "expires_after"
"""Some clients send the object as one JSON text; OpenAI's own sends the two fields above."""
_KNOWN: Final = ("file", "purpose", _ANCHOR, _SECONDS, _WHOLE)


@dataclass
class UploadFields:
    """What the form says beside the file's bytes."""

    filename: str = ""
    purpose: FilePurpose = FilePurpose.BATCH
    seconds: int | None = None
    """How long the file is to be kept, if the client says so."""
    _seen: set[str] = field(default_factory=set)

    def begin(self, name: str, filename: str) -> None:
        """A part begins: its name must be known and new."""
        if name not in _KNOWN:
            raise refused(f"Unknown parameter: {name[:64]!r}.", "unknown_parameter", name[:64])
        if name in self._seen:
            raise refused(f"Parameter {name!r} was given twice.", "duplicate_parameter", name)
        self._seen.add(name)
        if name == "file":
            self.filename = _checked_filename(filename)

    def set(self, name: str, value: str) -> None:
        """A part other than the file has come to its end."""
        if name == "purpose":
            self.purpose = _checked_purpose(value)
        elif name == _ANCHOR:
            _check_anchor(value)
        elif name == _SECONDS:
            self.seconds = _checked_seconds(value)
        elif name == _WHOLE:
            self.seconds = _checked_expiry(value)

    def check_complete(self) -> None:
        for name in ("file", "purpose"):
            if name not in self._seen:
                raise refused(f"Missing required parameter: {name!r}.", "missing_required_parameter", name)
        given = self._seen & {_ANCHOR, _SECONDS}
        if _WHOLE in self._seen and given:
            raise refused(f"Parameter '{_WHOLE}' was given twice.", "duplicate_parameter", _WHOLE)
        if len(given) == 1:
            (missing,) = {_ANCHOR, _SECONDS} - given
            raise refused(f"Missing required parameter: {missing!r}.", "missing_required_parameter", missing)


def refused(message: str, code: str, param: str | None) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was stored.", code=code, param=param)


def _checked_filename(filename: str) -> str:
    if len(filename) > MOST_FILENAME:
        raise refused(
            f"The file's name has {len(filename)} characters; it may have {MOST_FILENAME}.", "filename_too_long", "file"
        )
    if "\0" in filename:
        raise refused("The file's name holds U+0000, which cannot be stored.", "invalid_value", "file")
    return filename


def _checked_purpose(value: str) -> FilePurpose:
    if value not in (FilePurpose.BATCH, FilePurpose.DATASET):
        raise refused(
            f"Purpose {value[:64]!r} is not supported: this service takes files of purpose 'batch' (requests) "
            "and 'dataset' (a table).",
            "invalid_file_purpose",
            "purpose",
        )
    return FilePurpose(value)


def _check_anchor(value: object) -> None:
    if value != "created_at":
        raise refused(f"`{_ANCHOR}` is {str(value)[:64]!r}; it must be 'created_at'.", "invalid_expires_after", _ANCHOR)


def _checked_seconds(value: object) -> int:
    try:
        return FileExpiry.model_validate({"anchor": "created_at", "seconds": value}).seconds
    except ValidationError as error:
        raise refused(
            f"`{_SECONDS}` is {str(value)[:64]}; it must be a whole number from {LEAST_EXPIRY_SECONDS} to "
            f"{MOST_EXPIRY_SECONDS}.",
            "invalid_expires_after",
            _SECONDS,
        ) from error


def _checked_expiry(value: str) -> int:
    try:
        expiry = json.loads(value)
    except (ValueError, RecursionError):
        expiry = None
    if not isinstance(expiry, dict) or set(expiry) != {"anchor", "seconds"}:
        raise refused(
            f"`{_WHOLE}` is {value[:64]!r}; it must be an object with `anchor` and `seconds`.",
            "invalid_expires_after",
            _WHOLE,
        )
    _check_anchor(expiry["anchor"])
    return _checked_seconds(expiry["seconds"])
