"""The one way to S3: a client a process, and every error of boto3 turned into an :class:`OSError` of this package.

Endpoint, region and credentials come from where AWS's own tools take them: ``AWS_ENDPOINT_URL``, ``AWS_REGION``,
``AWS_ACCESS_KEY_ID``, profiles, the roles of instances and pods. Nothing of this package names or logs them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from airflow_batch_llm.storage.base import ChangedError, StorageTroubleError

ATTEMPTS: Final = 5
_MISSING: Final = {"NoSuchKey", "NotFound", "404"}
_CREDENTIALS: Final = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_MAKING: Final = threading.Lock()


def client() -> Any:
    """This process's client for S3, made when it is first asked for. Threads may share it."""
    with _MAKING:
        return _made()


def forget_client() -> None:
    """Has the next call of :func:`client` look at the environment anew."""
    _made.cache_clear()


@functools.cache
def _made() -> Any:
    """A client that stays with what every server that speaks S3 understands.

    A newer boto3 adds a CRC to each upload, in a trailer that some servers other than AWS refuse or store as content;
    TLS guards the way already, so ``when_required`` leaves it out. Deleting many keys at once needs a checksum, and
    some of those servers know only the MD5 that boto3 does not send any more. With an endpoint of its own, boto3
    addresses buckets in the path, unless a profile says otherwise. ``AWS_REGION`` is AWS's name for the region, but
    boto3 reads only ``AWS_DEFAULT_REGION``.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=64,
        connect_timeout=5,
        read_timeout=60,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    made = boto3.session.Session().client("s3", region_name=os.environ.get("AWS_REGION") or None, config=config)
    made.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    return made


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def code_of(error: ClientError) -> str:
    """S3's word for what went wrong, such as ``NoSuchKey``; the HTTP status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status of the answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def translated(bucket: str, key: str, *, needs: str) -> Iterator[None]:
    """Turns the errors of boto3 in its block into those of ``base.py``; ``needs`` are the permissions it takes."""
    place = f"s3://{bucket}/{key}"
    try:
        yield
    except ClientError as error:
        raise _plain(error, bucket, place, needs) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(
            f"{place} could not be reached: {error}. Give this process credentials that allow {needs}, through "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the role of the machine."
        ) from error
    except ParamValidationError as error:
        raise ValueError(f"{place} is not a place on S3: {error}") from error
    except BotoCoreError as error:
        raise StorageTroubleError(f"S3 gave no answer about {place}: {error}. Another try may go better.") from error


def _plain(error: ClientError, bucket: str, place: str, needs: str) -> OSError:
    code, status = code_of(error), status_of(error)
    said = f"{code} ({status}): {error.response.get('Error', {}).get('Message', 'no message')}"
    if code == "NoSuchBucket":
        return FileNotFoundError(f"There is no bucket {bucket}, so {place} cannot be there.")
    if code in _MISSING:
        return FileNotFoundError(f"There is no object {place}.")
    if status in (412, 416):
        return ChangedError(f"{place} is not the object any more that was looked at: it was replaced in between.")
    if status in (401, 403) or code in _CREDENTIALS:
        return PermissionError(
            f"S3 refused {place}: {said}. The credentials of this process need {needs} there; without s3:ListBucket "
            "on the bucket, S3 says this of an object that does not exist, too."
        )
    return StorageTroubleError(f"S3 could not do what was asked of {place}: {said}. Another try may go better.")
