"""Every exception a user of this package can meet, in families by *when* it happens.

::

    BatchLLMError
    ├── RefusedError            before anything was stored: correct the call and submit again
    │   ├── InvalidRequestError
    │   ├── UnauthorizedError
    │   │   └── InsufficientScopeError
    │   ├── NotFoundError
    │   ├── ConflictError
    │   └── TooManyRequestsError
    ├── BatchEndedError         after: the batch ended without what was asked for
    │   ├── BatchFailedError
    │   ├── BatchCancelledError
    │   └── BatchExpiredError
    ├── EngineStartError        a worker's engine ended before it served anything: see its log
    ├── NoAnswerError           nothing is known: the same call may be made again
    └── LeaseLostError          the work belongs to somebody else now: drop it, write nothing

A row that fails is not an exception, it is a line of the result.
"""

from __future__ import annotations


class BatchLLMError(Exception):
    """Base of every error of this package."""


class RefusedError(BatchLLMError):
    """The service refused the call and stored nothing.

    ``code`` is a word for programs (``unknown_column``), ``param`` the field it is about, ``status`` the HTTP status.
    """

    status = 400

    def __init__(self, message: str, *, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class InvalidRequestError(RefusedError):
    """What was asked for cannot be done as it was asked (HTTP 400)."""


class UnauthorizedError(RefusedError):
    """The token is missing or not one of the service's (HTTP 401)."""

    status = 401


class InsufficientScopeError(UnauthorizedError):
    """The token is one of the service's, but does not allow this call (HTTP 403)."""

    status = 403


class NotFoundError(RefusedError):
    """There is no such thing, or it is not the caller's (HTTP 404)."""

    status = 404


class ConflictError(RefusedError):
    """The call contradicts what is stored already (HTTP 409)."""

    status = 409


class TooManyRequestsError(RefusedError):
    """The caller asked more often than the service allows (HTTP 429). ``retry_after`` is in whole seconds."""

    status = 429

    def __init__(self, message: str, *, code: str, retry_after: int) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class BatchEndedError(BatchLLMError):
    """A batch ended, and not with status ``completed``."""

    def __init__(self, message: str, *, batch_id: str) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class BatchFailedError(BatchEndedError):
    """The batch could not be run: its source, its template or its target is wrong."""


class BatchCancelledError(BatchEndedError):
    """Somebody cancelled the batch. What was done before is kept."""


class BatchExpiredError(BatchEndedError):
    """The batch ran out of its time. What was done before is kept."""


class NoAnswerError(BatchLLMError):
    """The service could not be reached, or answered as no batch service does. Nothing is known of the call."""


class EngineStartError(BatchLLMError):
    """A worker's engine ended, or gave no sign of life for too long, before it served anything."""


class LeaseLostError(BatchLLMError):
    """An attempt tried to write to a chunk that it no longer holds. Nothing was written."""

    def __init__(self, chunk_id: int, attempt: int) -> None:
        super().__init__(
            f"Attempt {attempt} no longer holds chunk {chunk_id}: its lease ran out or its batch ended, "
            "and the chunk may be with another worker. Nothing was written."
        )
        self.chunk_id = chunk_id
        self.attempt = attempt
