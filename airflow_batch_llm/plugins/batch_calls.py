"""The calls of the pages that are about one batch, each by the permission on the batch's Dag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import httpx
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from airflow_batch_llm.page_wire import BatchLine, BatchReport, Overview, OverviewQuery
from airflow_batch_llm.plugins.asked import body_of, parameters, wait_of
from airflow_batch_llm.plugins.page_connections import PageService, ServiceDep
from airflow_batch_llm.plugins.refusals import Refusal
from airflow_batch_llm.plugins.service_calls import ServiceCalls, chunks, parsed, while_looked_at
from airflow_batch_llm.plugins.viewer import ACT, READ, SEE, Permission, SeeingViewerDep, Viewer
from airflow_batch_llm.wire import BATCH_ID

_PASSED_HEADERS: Final = ("content-type", "content-disposition", "content-length")

router: Final = APIRouter(prefix="/batches/{batch_id}")


@dataclass(frozen=True)
class AskedBatch:
    """A batch of a request, with the service that has it and the user who asks."""

    request: Request
    viewer: Viewer
    service: PageService
    line: BatchLine

    @property
    def calls(self) -> ServiceCalls:
        calls: ServiceCalls = self.request.app.state.calls
        return calls

    @property
    def dag_id(self) -> str | None:
        """The Dag of this Airflow that it comes from; None where it comes from none, or from another Airflow's."""
        origin = self.line.origin
        return origin.dag_id if origin and origin.deployment in self.service.deployments else None

    @property
    def _no_dag(self) -> str:
        if self.line.origin and not self.service.deployments:
            return self.service.how_to_name
        return "It comes from no Dag of this Airflow."

    def path(self, call: str) -> str:
        return f"/v1/batches/{self.line.id}/{call}"

    async def check(self, permission: Permission) -> None:
        """Raises :class:`Refusal` where the user does not have it."""
        what = f"Batch {self.line.id}"
        await run_in_threadpool(self.viewer.check, permission, self.dag_id, what, no_dag=self._no_dag)

    async def get(self, call: str, params: Mapping[str, str]) -> httpx.Response:
        asking = self.calls.ask(self.service, "GET", self.path(call), params=params, wait=wait_of(params))
        return await while_looked_at(self.request, asking)


async def _asked_batch(
    request: Request, viewer: SeeingViewerDep, service: ServiceDep, batch_id: Annotated[str, Path(pattern=BATCH_ID)]
) -> AskedBatch:
    """Looked up in the list: to ask for it by its id would be a look at it, which keeps it going."""
    asked = OverviewQuery(batch_ids=[batch_id], limit=1)
    calls: ServiceCalls = request.app.state.calls
    answer = await calls.ask(
        service,
        "POST",
        "/v1/batches/overview",
        json=asked.model_dump(mode="json", exclude_none=True),
        repeatable=True,
    )
    found = parsed(Overview, answer, service).data or []
    if [line.id for line in found] != [batch_id]:
        raise Refusal(404, "batch_not_found", f"{service} has no batch {batch_id}, or has deleted it.")
    return AskedBatch(request, viewer, service, found[0])


BatchDep = Annotated[AskedBatch, Depends(_asked_batch)]


@router.get("/report")
async def get_report(batch: BatchDep) -> BatchReport:
    """The batch's story. ``may_act`` is whether this user may change this batch."""
    await batch.check(SEE)
    answer = await batch.get("report", parameters(batch.request, "version", "wait"))
    may_act = await run_in_threadpool(batch.viewer.may, ACT, batch.dag_id)
    return parsed(BatchReport, answer, batch.service).model_copy(update={"may_act": may_act})


@router.get("/rows")
async def get_rows(batch: BatchDep) -> Response:
    await batch.check(READ)
    asked = parameters(batch.request, "after", "limit", "status", "label", "search")
    return _as_it_came(await batch.get("rows", asked))


@router.get("/answers")
async def get_answers(batch: BatchDep) -> Response:
    await batch.check(READ)
    return _as_it_came(await batch.get("answers", {}))


@router.get("/download")
async def download(batch: BatchDep) -> StreamingResponse:
    """A file of the result, as it comes and never whole in memory; to be stored, never to be shown."""
    await batch.check(READ)
    opening = batch.calls.open(batch.service, batch.path("download"), parameters(batch.request, "file"))
    response = await while_looked_at(batch.request, opening)
    passed = {name: response.headers[name] for name in _PASSED_HEADERS if name in response.headers}
    if "content-encoding" in response.headers:
        passed.pop("content-length", None)  # it was asked for without, and is unpacked on the way
    return StreamingResponse(chunks(response), headers={"content-disposition": "attachment", **passed})


class ActAsked(BaseModel):
    """The body of an act, of which nothing counts: who acts is known, and what is done stands in the address."""


@router.post("/cancel")
async def cancel(batch: BatchDep) -> Response:
    return await _act(batch, "cancel")


@router.post("/retry")
async def retry(batch: BatchDep) -> Response:
    return await _act(batch, "retry")


@router.post("/pause")
async def pause(batch: BatchDep) -> Response:
    return await _act(batch, "pause")


@router.post("/resume")
async def resume(batch: BatchDep) -> Response:
    return await _act(batch, "resume")


async def _act(batch: AskedBatch, act: Literal["cancel", "retry", "pause", "resume"]) -> Response:
    """Says who did it. It is not broken off where the browser hangs up: nobody would know whether it was done."""
    await batch.check(ACT)
    await body_of(batch.request, ActAsked)
    by: dict[str, Any] = {"by": batch.viewer.name}
    answer = await batch.calls.ask(batch.service, "POST", batch.path(act), json=by)
    return _as_it_came(answer)


def _as_it_came(answer: httpx.Response) -> Response:
    return Response(answer.content, media_type="application/json")
