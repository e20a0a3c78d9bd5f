"""The S3 server for the tests of this folder, and a storage and a tree of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.storage.s3 import S3Storage
from airflow_batch_llm.storage.s3_tree import S3Tree
from airflow_batch_llm.storage.tree import Tree
from tests.s3_server import Bucket, s3, s3_server

__all__ = ["s3", "s3_server"]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return LocalStorage(tmp_path / "storage")
    bucket: Bucket = request.getfixturevalue("s3")
    return S3Storage(bucket.name, "some/prefix")


@dataclass(frozen=True)
class Place:
    """A tree, and an empty folder in it."""

    tree: Tree
    uri: Callable[[str], str]

    def write(self, name: str, content: bytes) -> str:
        """Publishes a file below the folder, in place of what is there, and gives its URI."""
        uri = self.uri(name)
        with self.tree.scratch(uri) as path:
            path.write_bytes(content)
            self.tree.publish(path, uri, over=self.tree.stat(uri))
        return uri

    def read(self, uri: str) -> bytes:
        entry = self.tree.stat(uri)
        assert entry is not None
        with self.tree.open(entry) as stream:
            return stream.read()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        (tmp_path / "tables").mkdir()
        return Place(LocalTree(), lambda name: f"{tmp_path}/tables/{name}".rstrip("/"))
    bucket: Bucket = request.getfixturevalue("s3")
    return Place(S3Tree(), lambda name: bucket.uri(f"tables/{name}").rstrip("/"))
