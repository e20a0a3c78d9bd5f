"""Who calls, and whether the token allows it: what every route needs before anything else."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer

from airflow_batch_llm.errors import InsufficientScopeError, UnauthorizedError
from airflow_batch_llm.models import Scope
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tokens import Access, Tokens

TEAM: Final = "team"
"""The parameter of a query that names another team than the token's."""

_Described = Annotated[object, Depends(HTTPBearer(auto_error=False))]
"""Only so that the API's description says it: the token was looked at before the request came to its route."""

_DescribedTeam = Annotated[
    str | None,
    Query(
        alias=TEAM,
        min_length=1,
        max_length=128,
        description="Whose things the call is about: the token's team, or another one for a token with the scope admin "
        "that is for all teams.",
    ),
]
"""For the description, and for its limits; :func:`allowed` reads it."""

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
    """What the request's token opens. Raises :class:`InsufficientScopeError` where it does not have ``scope``, or the
    query names a team that is not its own."""
    access: Access = getattr(request.state, ACCESS)
    if not access.allows(scope):
        has = ", ".join(sorted(access.scopes)) or "none"
        raise InsufficientScopeError(
            f"This call needs a token with the scope {scope}; the scopes of this one are: {has}. Nothing was done. "
            "Whoever runs the service makes tokens with `batch-llm token create`.",
            code="insufficient_scope",
        )
    return _of_named_team(request, access)


def _of_named_team(request: Request, access: Access) -> Access:
    """The same access to the things of the team that the query names. Only clients may name one: a worker is of the
    pool that its token says."""
    named = request.query_params.get(TEAM)
    if named is None or named == access.team:
        return access
    if access.sees_all_teams and request.url.path.startswith("/v1/"):
        return dataclasses.replace(access, team=named)
    raise InsufficientScopeError(
        f"This token is team {access.team}'s, and the call names team {named}. Nothing was done. Another team can only "
        "be named with a token that has the scope admin and is for all teams, and only in calls of clients.",
        code="team_not_allowed",
        param=TEAM,
    )


def _reading(request: Request, _: _Described, team: _DescribedTeam = None) -> Access:
    return allowed(request, Scope.READ)


def _reader(access: Reading) -> str:
    return access.team


def _submitter(request: Request, _: _Described, team: _DescribedTeam = None) -> str:
    return allowed(request, Scope.SUBMIT).team


def _token_name(request: Request, _: _Described) -> str:
    access: Access = getattr(request.state, ACCESS)
    return access.name


def _worker_pool(request: Request, _: _Described) -> Pool:
    return allowed(request, Scope.WORKER).pool


Reading = Annotated[Access, Depends(_reading)]
"""What a token that may read opens."""
Reader = Annotated[str, Depends(_reader)]
"""The team of a token that may read."""
Submitter = Annotated[str, Depends(_submitter)]
"""The team of a token that may submit, and change or end what was submitted."""
TokenName = Annotated[str, Depends(_token_name)]
"""What the token is called: who acts, where the call does not say it."""
WorkerPool = Annotated[Pool, Depends(_worker_pool)]
"""The pool that a worker with such a token is one of."""
