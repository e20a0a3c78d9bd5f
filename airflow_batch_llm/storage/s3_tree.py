"""Tables in the buckets of S3."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast

from botocore.exceptions import ClientError

from airflow_batch_llm.storage.base import ChangedError
from airflow_batch_llm.storage.s3_client import client, status_of, translated
from airflow_batch_llm.storage.s3_keys import has_any, pages
from airflow_batch_llm.storage.s3_stream import S3Stream
from airflow_batch_llm.storage.s3_upload import upload_over
from airflow_batch_llm.storage.tree import Entry, Wanted

_SCHEME: Final = "s3://"


class S3Tree:
    """Objects by ``s3://bucket/key``. The key is what comes after the bucket, to the letter: ``%20`` is no space."""

    def stat(self, uri: str) -> Entry | None:
        bucket, key = _parts(uri)
        found = _head(bucket, key)
        return None if found is None else _entry(bucket, key, found["ContentLength"], found["ETag"])

    def is_folder(self, uri: str) -> bool:
        return has_any(*_folder(uri))

    def list(self, uri: str, wanted: Wanted | None = None) -> Iterator[Entry]:
        bucket, prefix = _folder(uri)
        for page in pages(bucket, prefix):
            for found in page:
                key, size = found["Key"], found["Size"]
                if _is_hidden(key.removeprefix(prefix)) or (key.endswith("/") and size == 0):
                    continue
                entry = _entry(bucket, key, size, found["ETag"])
                if wanted is None or wanted.file(entry.uri):
                    yield entry

    @contextmanager
    def open(self, entry: Entry) -> Iterator[BinaryIO]:
        bucket, key = _parts(entry.uri)
        if entry.size == 0:
            _check_unchanged(bucket, key, entry.version)
        with S3Stream(bucket, key, etag=entry.version, size=entry.size) as stream:
            yield cast("BinaryIO", stream)

    def publish(self, path: Path, uri: str, *, over: Entry | None) -> None:
        bucket, key = _parts(uri)
        standing = self.stat(uri)  # the condition is for what comes between; not every server knows it
        if over is None and standing is not None:
            raise FileExistsError(f"There is an object {uri} already.")
        if standing != over:
            raise ChangedError(f"{uri} is not the object any more that was looked at. It was not touched.")
        upload_over(path, bucket, key, etag=None if over is None else over.version)

    def delete(self, uri: str) -> None:
        bucket, key = _parts(uri)
        with translated(bucket, key, needs="s3:DeleteObject"):
            client().delete_object(Bucket=bucket, Key=key)

    @contextmanager
    def scratch(self, uri: str, *, owner: str | None = None, attempt: int = 1) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="batch-llm-") as folder:
            yield Path(folder) / f"new{PurePosixPath(uri).suffix}"


def _parts(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
    if not uri.startswith(_SCHEME) or not bucket:
        raise ValueError(f"{uri!r} is not of the form s3://bucket/key.")
    return bucket, key


def _folder(uri: str) -> tuple[str, str]:
    bucket, key = _parts(uri)
    return bucket, f"{key.rstrip('/')}/" if key.rstrip("/") else ""


def _entry(bucket: str, key: str, size: int, etag: str) -> Entry:
    return Entry(f"{_SCHEME}{bucket}/{key}", size, etag.strip('"'))


def _is_hidden(below: str) -> bool:
    return any(part.startswith((".", "_")) for part in below.split("/"))


def _head(bucket: str, key: str) -> dict[str, Any] | None:
    """What S3 says of an object, or None if there is none in a bucket that is there.

    The answer to HEAD has no body, so a missing bucket looks like a missing key, and a second question tells.
    """
    if not key:
        return None
    with translated(bucket, key, needs="s3:GetObject"):
        try:
            found: dict[str, Any] = client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if status_of(error) != 404:
                raise
            _check_bucket(bucket, key)
            return None
    return found


def _check_bucket(bucket: str, key: str) -> None:
    try:
        client().head_bucket(Bucket=bucket)
    except ClientError as error:
        if status_of(error) == 404:
            raise FileNotFoundError(f"There is no bucket {bucket}, so s3://{bucket}/{key} cannot be there.") from error
        if status_of(error) != 403:
            raise


def _check_unchanged(bucket: str, key: str, version: str) -> None:
    with translated(bucket, key, needs="s3:GetObject"):
        client().head_object(Bucket=bucket, Key=key, IfMatch=f'"{version}"')
