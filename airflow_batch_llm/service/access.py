"""Who calls: what every route needs before anything else."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from airflow_batch_llm.errors import UnauthorizedError
from airflow_batch_llm.service.state import ServiceState

_bearer: Final = HTTPBearer(auto_error=False)


def service_state(request: Request) -> ServiceState:
    state: ServiceState = request.app.state.service
    return state


State = Annotated[ServiceState, Depends(service_state)]


def authenticated_team(state: State, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The team whose token the request carries."""
    team = state.tokens.team_of(given.credentials) if given else None
    if team is None:
        what = "The token is not one of this service's." if given else "The request carries no token."
        raise UnauthorizedError(
            f"{what} Send it as `Authorization: Bearer …`; the first one stands in the file `token` of the service's "
            "home.",
            code="invalid_api_key",
        )
    return team


Team = Annotated[str, Depends(authenticated_team)]
