"""Bytes by key, and the places where tables lie."""

from __future__ import annotations

import re
from typing import Final

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.local import LocalStorage

S3: Final = "s3://"
BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_storage(settings: ServiceSettings) -> Storage:
    """Where a service keeps its own bytes. Raises :class:`InvalidRequestError` for a place that cannot be one."""
    if settings.storage_url is None:
        return LocalStorage(settings.storage_root)
    bucket, prefix = bucket_and_prefix(settings.storage_url, option="--storage")
    from airflow_batch_llm.storage.s3 import S3Storage

    return S3Storage(bucket, prefix)


def bucket_and_prefix(uri: str, *, option: str) -> tuple[str, str]:
    """The parts of ``s3://bucket/folder``. Raises :class:`InvalidRequestError` for anything else."""
    bucket, _, prefix = uri.removeprefix(S3).partition("/")
    folders = prefix.rstrip("/").split("/")
    odd = any(name in ("", ".", "..") for name in folders) and folders != [""]
    if not uri.startswith(S3) or not BUCKET.fullmatch(bucket) or odd or not prefix.isprintable():
        raise InvalidRequestError(
            f"{option} {uri!r} is not of the form s3://bucket or s3://bucket/folder. Nothing was started.",
            code="place_not_supported",
        )
    return bucket, prefix
