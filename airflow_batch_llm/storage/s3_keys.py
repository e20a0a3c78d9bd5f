"""The keys of a bucket: listed page by page, and deleted many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from airflow_batch_llm.storage.base import StorageTroubleError
from airflow_batch_llm.storage.s3_client import client, translated

PAGE: Final = 1000
"""S3 neither lists nor deletes more at once."""


def pages(bucket: str, prefix: str, *, after: str = "") -> Iterator[list[dict[str, Any]]]:
    """The objects whose keys begin with ``prefix`` and come behind ``after``, in the order of their keys, as boto3
    describes them."""
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE}
    if after:
        asked["StartAfter"] = after
    while True:
        with translated(bucket, prefix, needs="s3:ListBucket"):
            answer = client().list_objects_v2(**asked)
        yield answer.get("Contents", [])
        if not answer.get("IsTruncated"):
            return
        asked["ContinuationToken"] = answer["NextContinuationToken"]


def has_any(bucket: str, prefix: str) -> bool:
    """Whether a key begins with ``prefix``."""
    with translated(bucket, prefix, needs="s3:ListBucket"):
        answer = client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return bool(answer.get("Contents"))


def delete_all(bucket: str, prefix: str) -> None:
    """Deletes every object whose key begins with ``prefix``. If it raises, some are left, and a second call goes on."""
    for page in pages(bucket, prefix):
        if not page:
            return
        delete_keys(bucket, [found["Key"] for found in page])


def delete_keys(bucket: str, keys: Sequence[str]) -> None:
    """Deletes the objects with these keys that are there."""
    for start in range(0, len(keys), PAGE):
        some = keys[start : start + PAGE]
        with translated(bucket, some[0], needs="s3:DeleteObject"):
            asked = {"Objects": [{"Key": key} for key in some], "Quiet": True}
            answer = client().delete_objects(Bucket=bucket, Delete=asked)
        if kept := answer.get("Errors"):
            raise _not_deleted(bucket, kept)


def _not_deleted(bucket: str, kept: list[dict[str, str]]) -> OSError:
    first = kept[0]
    said = f"{len(kept):,} objects were not deleted, first s3://{bucket}/{first.get('Key')}: {first.get('Code')}"
    if first.get("Code") == "AccessDenied":
        return PermissionError(f"{said}. The credentials of this process need s3:DeleteObject there.")
    return StorageTroubleError(f"{said}. Another try may go better.")
