"""A part of a bucket as storage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from airflow_batch_llm.storage.base import StoredObject, checked_key
from airflow_batch_llm.storage.s3_client import client, translated
from airflow_batch_llm.storage.s3_keys import delete_all, delete_keys, pages
from airflow_batch_llm.storage.s3_stream import open_object
from airflow_batch_llm.storage.s3_upload import drop_unfinished_uploads, upload


class S3Storage:
    """Keeps each key as the object ``prefix/key`` of a bucket. S3 shows an object when it is whole, and not before."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._root = f"{prefix.strip('/')}/".removeprefix("/")

    def put(self, key: str, content: bytes) -> None:
        name = self._name(key)
        with translated(self._bucket, name, needs="s3:PutObject"):
            client().put_object(Bucket=self._bucket, Key=name, Body=content)

    def put_file(self, key: str, path: Path) -> None:
        upload(path, self._bucket, self._name(key))

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """As in the protocol. Until the block ends the bytes are in a file in the process's temporary folder."""
        name = self._name(key)
        with tempfile.NamedTemporaryFile(prefix="batch-llm-") as file:
            yield cast("BinaryIO", file)
            file.flush()
            upload(Path(file.name), self._bucket, name)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with open_object(self._bucket, self._name(key)) as stream:
            yield cast("BinaryIO", stream)

    def list(self, prefix: str) -> Iterator[str]:
        for found in self.scan(prefix):
            yield found.key

    def scan(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        folder = self._folder(prefix)
        for page in pages(self._bucket, folder, after=self._root + after if after else ""):
            for found in page:
                if not found["Key"].endswith("/"):
                    key = found["Key"].removeprefix(self._root)
                    yield StoredObject(key, found["Size"], found["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        name = self._name(key)
        with translated(self._bucket, name, needs="s3:DeleteObject"):
            client().delete_object(Bucket=self._bucket, Key=name)

    def delete_many(self, keys: Sequence[str]) -> None:
        delete_keys(self._bucket, [self._name(key) for key in keys])

    def delete_prefix(self, prefix: str) -> None:
        delete_all(self._bucket, self._folder(prefix))

    def drop_unfinished(self, *, before: float, ours: Callable[[str], bool]) -> int:
        def known(name: str) -> bool:
            return ours(name.removeprefix(self._root))

        return drop_unfinished_uploads(self._bucket, self._root, before=before, ours=known)

    def _name(self, key: str) -> str:
        return self._root + checked_key(key)

    def _folder(self, prefix: str) -> str:
        key = checked_key(prefix)
        return f"{self._root}{key}/" if key else self._root
