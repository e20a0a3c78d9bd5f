"""Looking at what a batch has answered: rows, how often which answer was given, the target's files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.page_wire import MOST_SHOWN_ROWS, Answers, SearchText, ShownRows
from airflow_batch_llm.service.access import Reader, State
from airflow_batch_llm.service.answer_counts import counted_answers
from airflow_batch_llm.service.downloads import download
from airflow_batch_llm.service.file_routes import BINARY
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.shown_rows import RowFilter, shown_rows
from airflow_batch_llm.service.source_files import MOST_FILES

router: Final = APIRouter()

_FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The whole file.",
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def service_looks(request: Request) -> CapacityLimiter:
    looks: CapacityLimiter = request.app.state.looks
    return looks


Looking = Annotated[CapacityLimiter, Depends(service_looks)]
"""The threads of calls that read for seconds: what workers and clients wait for is never behind them."""
Label = Annotated[str, Query(max_length=4_000)]


@router.get("/v1/batches/{batch_id}/rows", response_model=ShownRows, responses=problems(400, 401, 404, 503))
async def get_rows(
    state: State,
    team: Reader,
    looking: Looking,
    batch_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_SHOWN_ROWS)] = 10,
    status: RowStatus | Literal["failed"] | None = None,
    label: Label | None = None,
    search: SearchText | None = None,
) -> Response:
    """Input, prompt and output of some rows, also while the batch runs. ``failed`` are those in error or with an
    invalid output. A filter looks through a bounded number of rows, and the next page goes on from there."""
    wanted = RowFilter(status, label, search)
    return await _looked(
        looking,
        lambda: shown_rows(state, state.batches.get(team, batch_id), after=after, limit=limit, wanted=wanted),
    )


@router.get("/v1/batches/{batch_id}/answers", response_model=Answers, responses=problems(401, 404, 503))
async def get_answers(state: State, team: Reader, looking: Looking, batch_id: str) -> Response:
    """How often which choice, or value of a schema's field, was answered: of all rows, or of a sample evenly spread."""
    return await _looked(looking, lambda: counted_answers(state, state.batches.get(team, batch_id)))


async def _looked(looking: CapacityLimiter, look: Callable[[], BaseModel]) -> Response:
    """The answer to a look, made and written out by one of the threads that looks have."""
    content = await anyio.to_thread.run_sync(lambda: look().model_dump_json(), limiter=looking)
    return Response(content, media_type="application/json")


@router.get(
    "/v1/batches/{batch_id}/download", response_class=Response, responses=_FILE | problems(400, 401, 404, 409, 503)
)
def download_file(
    state: State, team: Reader, batch_id: str, file: Annotated[int, Query(ge=0, le=MOST_FILES)] = 0
) -> Response:
    """A file of a table's target, by its number in the manifest; of a request file 0 is the output, 1 the errors."""
    return download(state, state.batches.get(team, batch_id), file)
