"""Who calls, and whether the token allows it: what every route needs before anything else."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from airflow_batch_llm.errors import InsufficientScopeError, UnauthorizedError
from airflow_batch_llm.models import Scope
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tokens import Access, Tokens

_Described = Annotated[object, Depends(HTTPBearer(auto_error=False))]
"""Only so that the API's description says it: the token was looked at before the request came to its route."""

ACCESS: Final = "access"
"""Where a request carries what its token opens."""


def service_state(request: Request) -> ServiceState:
    state: ServiceState = request.app.state.service
    return state


State = Annotated[ServiceState, Depends(service_state)]


def access_of(tokens: Tokens, authorization: str | None) -> Access:
    """What a request with that header may do. Raises :class:`UnauthorizedError` without a token of the service's."""
    kind, _, token = (authorization or "").partition(" ")
    given = kind.lower() == "bearer" and token.strip()
    access = tokens.access_of(token.strip()) if given else None
    if access is None:
        what = "The token is not one of this service's." if given else "The request carries no token."
        raise UnauthorizedError(
            f"{what} Send it as `Authorization: Bearer …`; the first one stands in the file `token` of the service's "
            "home.",
            code="invalid_api_key",
        )
    return access


def allowed(request: Request, scope: Scope) -> Access:
    """What the request's token opens. Raises :class:`InsufficientScopeError` where it does not have ``scope``."""
    access: Access = getattr(request.state, ACCESS)
    if not access.allows(scope):
        has = ", ".join(sorted(access.scopes)) or "none"
        raise InsufficientScopeError(
            f"This call needs a token with the scope {scope}; the scopes of this one are: {has}. Nothing was done. "
            "Whoever runs the service makes tokens with `batch-llm token create`.",
            code="insufficient_scope",
        )
    return access


def _reader(request: Request, _: _Described) -> str:
    return allowed(request, Scope.READ).team


def _submitter(request: Request, _: _Described) -> str:
    return allowed(request, Scope.SUBMIT).team


def _token_name(request: Request, _: _Described) -> str:
    access: Access = getattr(request.state, ACCESS)
    return access.name


def _worker_pool(request: Request, _: _Described) -> Pool:
    return allowed(request, Scope.WORKER).pool


Reader = Annotated[str, Depends(_reader)]
"""The team of a token that may read."""
Submitter = Annotated[str, Depends(_submitter)]
"""The team of a token that may submit, and change or end what was submitted."""
TokenName = Annotated[str, Depends(_token_name)]
"""What the token is called: who acts, where the call does not say it."""
WorkerPool = Annotated[Pool, Depends(_worker_pool)]
"""The pool that a worker with such a token is one of."""
