"""Local files to S3: whole or not at all, and where it is asked for only over what the caller has looked at."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from airflow_batch_llm.storage.base import ChangedError
from airflow_batch_llm.storage.s3_client import ATTEMPTS, client, code_of, status_of, translated

PART: Final = 8 * 1024 * 1024
"""Bytes of a part."""
THREADS: Final = 4
"""Parts that go up at once, each held in memory while it does."""
LARGEST_PUT: Final = 5 * 1024**3
"""S3 takes no more with one request."""
MOST_PARTS: Final = 10_000
"""S3's limit of parts an object: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
_MARK: Final = "batch-llm-upload"
_NEEDS: Final = "s3:PutObject, s3:GetObject and s3:AbortMultipartUpload"


def upload(path: Path, bucket: str, key: str) -> None:
    """Stores the file's content under ``key``, in place of what may be there.

    A large file goes up in parts that S3 puts together at the end. What a killed process has sent of one is seen by
    nobody, but kept until :func:`drop_unfinished_uploads` or the bucket's own rule for incomplete uploads
    (AbortIncompleteMultipartUpload) removes it.
    """
    with translated(bucket, key, needs=_NEEDS):
        _send(path, {"Bucket": bucket, "Key": key})


def upload_over(path: Path, bucket: str, key: str, *, etag: str | None) -> None:
    """Stores the file's content in place of the object of that ETag, or with None only where there is no object.

    Raises :class:`FileExistsError` if there is one, and :class:`ChangedError` if it is another one by now, or gone. S3
    decides that when the object is about to appear, by ``If-Match`` and ``If-None-Match``. More servers know these of a
    single request than of parts, so a file goes up with one request if it can. A server that says it does not know them
    at all gets the file without, so the caller looks first. An answer that got lost makes boto3 ask twice, and then the
    first try stands in the way of the second: the object's metadata tells that it is this upload's own.
    """
    mark = uuid.uuid4().hex
    target = {"Bucket": bucket, "Key": key}
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
    with translated(bucket, key, needs=_NEEDS):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _send(path, target, mark=mark, condition=condition)
            except ClientError as error:
                if code_of(error) == "NotImplemented":
                    _send(path, target, mark=mark)
                elif status_of(error) == 409 and attempt < ATTEMPTS:
                    continue
                elif not _is_ours(target, mark):
                    _raise_for_condition(error, f"s3://{bucket}/{key}", etag)
                    raise
            return


def _raise_for_condition(error: ClientError, uri: str, etag: str | None) -> None:
    if etag is None and status_of(error) == 412:
        raise FileExistsError(f"There is an object {uri} already.") from error
    if etag is not None and (status_of(error) == 412 or code_of(error) == "NoSuchKey"):
        raise ChangedError(f"{uri} is not the object any more that was looked at. It was not touched.") from error


def drop_unfinished_uploads(bucket: str, prefix: str, *, before: float, ours: Callable[[str], bool]) -> int:
    """Gives up the uploads in parts that were begun before a time and never ended; gives how many.

    Of those below ``prefix`` whose keys ``ours`` knows.
    """
    dropped = 0
    for begun in _unfinished(bucket, prefix):
        if begun["Initiated"].timestamp() < before and ours(begun["Key"]):
            with translated(bucket, begun["Key"], needs="s3:AbortMultipartUpload"):
                client().abort_multipart_upload(Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])
            dropped += 1
    return dropped


def _unfinished(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        with translated(bucket, prefix, needs="s3:ListBucketMultipartUploads"):
            answer = client().list_multipart_uploads(**asked)
        yield from answer.get("Uploads", [])
        if not answer.get("IsTruncated"):
            return
        asked |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def _is_ours(target: dict[str, str], mark: str) -> bool:
    try:
        return bool(client().head_object(**target)["Metadata"].get(_MARK) == mark)
    except ClientError as error:
        if status_of(error) == 404:
            return False
        raise


def _send(path: Path, target: dict[str, str], *, mark: str = "", condition: Mapping[str, str] | None = None) -> None:
    condition = condition or {}
    marked: dict[str, Any] = {"Metadata": {_MARK: mark}} if mark else {}
    size = path.stat().st_size
    if size > (LARGEST_PUT if condition else PART):
        _send_parts(path, size, target, condition, marked)
        return
    with path.open("rb") as stream:
        client().put_object(**target, **condition, **marked, Body=stream)


def _send_parts(path: Path, size: int, target: dict[str, str], condition: Mapping[str, str], marked: Any) -> None:
    begun = {**target, "UploadId": client().create_multipart_upload(**target, **marked)["UploadId"]}
    with _given_up_on_trouble(begun), ThreadPoolExecutor(THREADS) as threads:
        length = max(PART, -(-size // MOST_PARTS))
        numbered = enumerate(range(0, size, length), 1)
        sent = [threads.submit(_send_part, begun, path, number, start, length) for number, start in numbered]
        try:
            parts = [part.result() for part in sent]
        finally:
            threads.shutdown(cancel_futures=True)
        client().complete_multipart_upload(**begun, **condition, MultipartUpload={"Parts": parts})


def _send_part(begun: dict[str, str], path: Path, number: int, start: int, length: int) -> dict[str, Any]:
    with path.open("rb") as stream:
        stream.seek(start)
        answer = client().upload_part(**begun, PartNumber=number, Body=stream.read(length))
    return {"PartNumber": number, "ETag": answer["ETag"]}


@contextlib.contextmanager
def _given_up_on_trouble(begun: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(ClientError, BotoCoreError):
            client().abort_multipart_upload(**begun)
        raise
