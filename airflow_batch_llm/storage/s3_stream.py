"""Streams: an object read in ranges. Never holds more than some MiB of it, unless more is asked for at once."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from airflow_batch_llm.storage.base import ChangedError, StorageTroubleError
from airflow_batch_llm.storage.s3_client import ATTEMPTS, client, status_of, translated

MIB: Final = 1024 * 1024
WHOLE: Final = MIB
"""An object of this size or less is read with one request."""
NEAR: Final = 64 * 1024
"""Read at once after a jump: Parquet jumps to what it needs and knows how much that is."""
FAR: Final = 8 * MIB
"""Read at once, at most, by one who reads on and on: long enough to make little of the wait for each answer."""


class S3Stream(io.BufferedIOBase):
    """One version of an object as a stream that can seek.

    Whoever reads on and on gets ranges twice as long each time, and who jumps gets short ones. Every range is of the
    same ETag: a :class:`~airflow_batch_llm.storage.base.ChangedError` is raised once the object was replaced.
    """

    def __init__(self, bucket: str, key: str, *, etag: str, size: int, head: bytes = b"") -> None:
        self._bucket, self._key, self._etag, self._size = bucket, key, etag, size
        self._at = 0
        self._block, self._block_at = head, 0
        self._ahead = max(len(head), WHOLE // 2)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"There is nothing before the beginning: {start + offset}.")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        if self.closed:
            raise ValueError("The stream is closed.")
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        content = self._held(wanted)
        self._at += len(content)
        if len(content) < wanted:
            content += self._fetched(wanted - len(content))
        return content

    def read1(self, size: int = -1, /) -> bytes:
        held = len(self._held(self._size)) or NEAR
        return self.read(held if size < 0 else min(size, held))

    def peek(self, _: int = 0, /) -> bytes:
        """Some bytes that come next, which stay where they are; so lines can be read without a call a byte."""
        if not self._held(1) and (more := self.read(1)):
            self._at -= len(more)
        return self._held(8192)

    def _held(self, count: int) -> bytes:
        start = self._at - self._block_at
        return self._block[start : start + count] if 0 <= start < len(self._block) else b""

    def _fetched(self, count: int) -> bytes:
        """The next ``count`` bytes, none of which are held. What was read beyond them is held from now on."""
        start = self._at
        follows = start == self._block_at + len(self._block)
        self._ahead = min(2 * self._ahead, FAR) if follows else NEAR
        stop = min(start + max(count, self._ahead), self._size)
        if self._size <= WHOLE:
            start, stop = 0, self._size
        content, etag, size = read_range(self._bucket, self._key, start, stop, etag=self._etag)
        if (etag, size) != (self._etag, self._size):  # a server that takes no notice of If-Match
            raise ChangedError(f"s3://{self._bucket}/{self._key} was replaced while it was read.")
        begin = self._at - start
        self._at += count
        is_used_up = self._at == stop and self._size > WHOLE
        self._block, self._block_at = (b"", stop) if is_used_up else (content, start)
        return content[begin : begin + count]


class _BrokenOffError(StorageTroubleError):
    """An answer that had begun did not come to its end."""


def open_object(bucket: str, key: str) -> S3Stream:
    """The object under ``key`` as it is now. Raises :class:`FileNotFoundError`."""
    head, etag, size = read_range(bucket, key, 0, WHOLE, etag=None)
    return S3Stream(bucket, key, etag=etag, size=size, head=head)


def read_range(bucket: str, key: str, start: int, stop: int, *, etag: str | None) -> tuple[bytes, str, int]:
    """The bytes from ``start`` up to ``stop`` or the end, with the ETag and the size of the whole object.

    An answer that breaks off is asked for again, which boto3 does only until the answer begins.
    """
    wanted: dict[str, Any] = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}"}
    if etag is not None:
        wanted["IfMatch"] = f'"{etag}"'
    with translated(bucket, key, needs="s3:GetObject"):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _one_answer(wanted, start)
            except ClientError as error:
                if status_of(error) != 416 or etag is not None:
                    raise
                return b"", "", 0  # S3 has no first byte to give of an empty object
            except _BrokenOffError:
                if attempt == ATTEMPTS:
                    raise
    raise AssertionError("unreachable")


def _one_answer(wanted: dict[str, Any], start: int) -> tuple[bytes, str, int]:
    answer = client().get_object(**wanted)
    with contextlib.closing(answer["Body"]) as body:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange") or "")
        if span is None or int(span[1]) != start:
            raise StorageTroubleError(
                f"The server gave s3://{wanted['Bucket']}/{wanted['Key']} without the range that was asked for."
            )
        try:
            content: bytes = body.read()
        except BotoCoreError as error:
            place = f"s3://{wanted['Bucket']}/{wanted['Key']}"
            raise _BrokenOffError(f"The answer with {place} broke off: {error}. Another try may go better.") from error
    return content, answer["ETag"].strip('"'), int(span[3])
