"""Bytes by key, and the places where tables lie."""

from __future__ import annotations

from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.local import LocalStorage


def open_storage(settings: ServiceSettings) -> Storage:
    """Where a service keeps its own bytes."""
    if settings.storage_url is None:
        return LocalStorage(settings.storage_root)
    from airflow_batch_llm.storage.s3 import S3Storage

    bucket, _, prefix = settings.storage_url.removeprefix("s3://").partition("/")
    return S3Storage(bucket, prefix)
