"""What a page shows first: the list of batches, the workers with their queue, and who looks.

None of these calls is a look at a batch: see :mod:`airflow_batch_llm.store.watching`.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request

from airflow_batch_llm import __version__, clock
from airflow_batch_llm.models import Scope
from airflow_batch_llm.page_wire import Overview, OverviewQuery, Whoami, WorkerList
from airflow_batch_llm.service.access import Reader, Reading, State
from airflow_batch_llm.service.connected import while_connected
from airflow_batch_llm.service.event_routes import WatchedChanges
from airflow_batch_llm.service.overview import changed, teams_of
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.worker_lines import worker_list

router: Final = APIRouter()


@router.post("/v1/batches/overview", responses=problems(400, 401, 503))
async def get_overview(
    state: State, access: Reading, changes: WatchedChanges, request: Request, body: OverviewQuery
) -> Overview:
    """One page of the team's batches with their counts: at once, or with ``version`` and ``wait`` once it differs."""
    waiting = changed(state, access, changes, body)
    answer = await while_connected(request, waiting)
    return answer or Overview(version=body.version or "", at=clock.now().timestamp())  # nobody reads that one


@router.get("/v1/workers", responses=problems(401, 503))
def list_workers(state: State, team: Reader) -> WorkerList:
    """The workers that do the team's chunks, those of all teams among them, and what of the team's waits for them.

    Of a worker of all teams the numbers are of its work for all of them.
    """
    return worker_list(state.worker_load.look(team))


@router.get("/v1/whoami", responses=problems(401, 503))
def whoami(state: State, access: Reading) -> Whoami:
    """What the caller's token opens."""
    return Whoami(
        name=access.name,
        team=access.team,
        scopes=[scope for scope in Scope if scope in access.scopes],
        teams=teams_of(state, access),
        version=__version__,
    )
