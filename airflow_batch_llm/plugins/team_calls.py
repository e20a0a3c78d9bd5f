"""The calls of the pages that are not about one batch: the list, the workers, who looks."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from airflow_batch_llm import __version__
from airflow_batch_llm.models import Scope
from airflow_batch_llm.page_wire import AirflowWhoami, Overview, OverviewQuery
from airflow_batch_llm.plugins.asked import body_of
from airflow_batch_llm.plugins.page_connections import OwnNamesDep, PageService, ServiceDep, listed_connections
from airflow_batch_llm.plugins.refusals import Refusal
from airflow_batch_llm.plugins.service_calls import ServiceCalls, parsed, while_looked_at
from airflow_batch_llm.plugins.viewer import ACT, SEE, SeeingViewerDep, ViewerDep
from airflow_batch_llm.wire import Origin

MOST_DAGS: Final = 20_000
"""Names of Dags in one question to the service."""

router: Final = APIRouter()


@router.get("/whoami")
def whoami(viewer: ViewerDep, deployments: OwnNamesDep) -> AirflowWhoami:
    """The user, and what they may do with batches of some Dag at least. No service is asked, so none can be away."""
    scopes = {Scope.READ: SEE, Scope.SUBMIT: ACT}
    return AirflowWhoami(
        name=viewer.name,
        team="",
        teams=[],
        scopes=[scope for scope, permission in scopes.items() if viewer.may_somewhere(permission)],
        version=__version__,
        connections=listed_connections(),
        deployments=deployments,
    )


@router.post("/batches/overview")
async def get_overview(request: Request, viewer: ViewerDep, service: ServiceDep) -> Overview:
    """A page of those batches whose Dags the user may see, whatever the request says of that."""
    asked = await body_of(request, OverviewQuery)
    visible = await run_in_threadpool(viewer.visible_dag_ids)
    seen = asked.model_copy(update=_limited_to(visible, asked.dag_ids, service))
    calls: ServiceCalls = request.app.state.calls
    asking = calls.ask(
        service,
        "POST",
        "/v1/batches/overview",
        json=seen.model_dump(mode="json", exclude_none=True),
        wait=seen.wait,
        repeatable=True,
    )
    answer = await while_looked_at(request, asking)
    return _as_seen(parsed(Overview, answer, service), visible, service)


@router.get("/workers")
async def list_workers(request: Request, viewer: SeeingViewerDep, service: ServiceDep) -> Response:
    """Names of workers and models, and numbers of all batches together, for everybody who may see those of some Dag."""
    calls: ServiceCalls = request.app.state.calls
    answer = await while_looked_at(request, calls.ask(service, "GET", "/v1/workers"))
    return Response(answer.content, media_type="application/json")


def _limited_to(
    visible: set[str] | None, wanted: list[str] | None, service: PageService
) -> dict[str, list[str] | None]:
    """What the service is told beside the filters asked for, which stay: its choices are of all that is visible."""
    if visible is None:
        return {"visible_dag_ids": None, "visible_deployments": None}
    if not service.deployments:
        raise Refusal(
            403,
            "forbidden",
            f"The list cannot be limited to the Dags that you may see. {service.how_to_name} Until then batches are "
            f"for those who have Airflow's permission {SEE.method} on {SEE.thing} of all Dags.",
        )
    named = visible if wanted is None or len(visible) <= MOST_DAGS else visible.intersection(wanted)
    if len(named) > MOST_DAGS:
        raise Refusal(
            400,
            "too_many_dags",
            f"The list cannot be limited to the {len(named):,} Dags that you may see: {MOST_DAGS:,} is the most. "
            "Choose some Dags.",
        )
    return {"visible_dag_ids": sorted(named), "visible_deployments": list(service.deployments)}


def _as_seen(answer: Overview, visible: set[str] | None, service: PageService) -> Overview:
    """The answer without what is not for this user; nothing is left to a service that may be of another version."""
    update: dict[str, object] = {"teams": []}
    if visible is not None and answer.data is not None:
        update["data"] = [line for line in answer.data if _is_visible(line.origin, visible, service)]
    if visible is not None:
        update["dag_ids"] = [dag_id for dag_id in answer.dag_ids if dag_id in visible]
    return answer.model_copy(update=update)


def _is_visible(origin: Origin | None, visible: set[str], service: PageService) -> bool:
    return origin is not None and origin.deployment in service.deployments and origin.dag_id in visible
