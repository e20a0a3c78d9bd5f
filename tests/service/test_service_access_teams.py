"""Teams beside one another: whose chunks a worker gets, what a team sees of workers, and where its tables may lie."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import ConflictError, InvalidRequestError, LeaseLostError, NotFoundError
from airflow_batch_llm.models import DEFAULT_TEAM, Scope
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.s3_client import client as s3_client
from airflow_batch_llm.store.batches import forget_batch
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService, running_service
from tests.s3_server import Bucket, s3, s3_server
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, line, openai_client
from tests.service.test_service_bad_input import submit, write
from tests.service.two_teams import BLUE, RED, as_caller, token_of

__all__ = ["s3", "s3_server"]


def submitted(service: RunningService, token: str) -> str:
    """A batch of one row, planned; gives its id."""
    batch = create(openai_client(service, token), file_of([line(0)]))
    while service.plan():
        pass
    return batch.id


def worker(service: RunningService, token: str, **options: Any) -> AnsweringWorker:
    return AnsweringWorker(as_caller(service, token), **options)


def test_a_worker_gets_the_chunks_of_its_tokens_team_alone(service: RunningService) -> None:
    red, blue = token_of(service, RED), token_of(service, BLUE)
    of_blue = worker(service, blue)
    reds = submitted(service, red)
    assert of_blue.claim() is None
    blues = submitted(service, blue)
    claim, _ = of_blue.claim() or pytest.fail("blue's own chunk was not given")
    assert claim.batch_id == blues
    claim, _ = worker(service, red).claim() or pytest.fail("red's own chunk was not given")
    assert claim.batch_id == reds


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_whose_token_says_so_gets_the_chunks_of_all_teams(service: RunningService, first: bool) -> None:
    """The first token says so: the pool of `batch-llm up` goes on as before there were teams."""
    token = service.token if first else token_of(service, "pool", Scope.WORKER, all_teams=True)
    batches = {submitted(service, token_of(service, team)) for team in (RED, BLUE)}
    shared = worker(service, token)
    claims = [shared.claim() for _ in batches]
    assert {claim[0].batch_id for claim in claims if claim} == batches


def test_a_token_of_one_team_cannot_go_on_for_a_worker_of_all_teams(service: RunningService) -> None:
    """Not even one of the same team: it would get every other team's rows."""
    submitted(service, token_of(service, RED))
    shared = worker(service, service.token)
    bound = worker(service, token_of(service, DEFAULT_TEAM), name="bound")
    for call in (bound.link.claim, bound.link.leave):
        with pytest.raises(NotFoundError):
            call(shared.worker_id)
    claim, lines = shared.claim() or pytest.fail("the shared worker got nothing")
    with pytest.raises(LeaseLostError):
        bound.link.rows(claim)
    with pytest.raises(LeaseLostError):
        bound.link.extend(claim, [])
    shared.link.commit(claim, [shared.store(claim, 0, lines)])
    with pytest.raises(LeaseLostError):
        bound.link.commit(claim, [])


def test_a_worker_of_a_name_that_another_teams_has_takes_nothing_from_it(service: RunningService) -> None:
    red = token_of(service, RED)
    submitted(service, red)
    reds = worker(service, red)
    claim, lines = reds.claim() or pytest.fail("red's own chunk was not given")
    for token in (token_of(service, BLUE), service.token):
        worker(service, token)
    reds.link.commit(claim, [reds.store(claim, 0, lines)])


def test_a_team_sees_the_models_of_its_own_workers_and_of_those_of_all_teams(service: RunningService) -> None:
    red, blue = token_of(service, RED), token_of(service, BLUE)
    worker(service, red, model="reds")
    worker(service, service.token, model="shared")
    shown = {}
    for token in (red, blue):
        with BatchClient(service.url, token) as client:
            shown[token] = {model.id for model in client.models().data}
    assert shown == {red: {"reds", "shared"}, blue: {"shared"}}
    batch = submitted(service, blue)
    with BatchClient(service.url, blue) as client:
        waiting = client.get(batch).progress.waiting_for
    assert waiting is not None
    assert "(models served now: shared)" in waiting


def test_two_teams_may_call_different_engines_the_same_and_neither_hears_of_the_other(service: RunningService) -> None:
    worker(service, token_of(service, RED), engine_identity="1")
    worker(service, token_of(service, BLUE), engine_identity="2")
    identities = [service.state.workers.identity_of(team, "m") for team in (RED, BLUE, "nobody")]
    assert identities == ["1", "2", None]


def test_a_teams_worker_cannot_keep_the_shared_ones_out(service: RunningService) -> None:
    red = token_of(service, RED)
    reds = worker(service, red, engine_identity="1")
    worker(service, service.token, engine_identity="2", name="the shared one")
    with pytest.raises(NotFoundError, match="must register again"):
        reds.link.claim(reds.worker_id)
    with pytest.raises(ConflictError, match="but a worker of all teams serves 2 under the same name") as caught:
        worker(service, red, engine_identity="1")
    assert "the shared one" not in str(caught.value)


def test_a_worker_needs_no_scope_but_its_own(service: RunningService) -> None:
    red, only = token_of(service, RED), token_of(service, RED, Scope.WORKER)
    batch = submitted(service, red)
    working = worker(service, only)
    working.link.check()
    assert working.work() == 1
    with BatchClient(service.url, red) as client:
        assert client.get(batch).request_counts.completed == 1


@pytest.fixture
def with_roots(tmp_path: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    """A service where red has a folder of its own, and blue has none."""
    (tmp_path / "red").mkdir()
    settings = dataclasses.replace(settings, team_roots={RED: (str(tmp_path / "red"),)})
    assert ServiceSettings.from_json(settings.to_json()) == settings
    monkeypatch.delenv("BATCH_LLM_TOKEN", raising=False)
    state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as running:
        yield running


def submit_as(service: RunningService, team: str, source: str, target: str) -> Batch:
    spec = DatasetSpec(source=source, target=target, messages=[Message(role="user", content="{a}")])
    with BatchClient(service.url, token_of(service, team)) as client:
        return client.submit(BatchCreate(dataset=spec, model="m"))


def test_a_team_with_a_root_of_its_own_uses_that_and_no_other(with_roots: RunningService) -> None:
    reds, shared = with_roots.data_root.parent / "red", with_roots.data_root
    write(reds)
    write(shared)
    submit_as(with_roots, RED, "ok.csv", "t.csv")
    submit_as(with_roots, BLUE, "ok.csv", "t.csv")
    while with_roots.plan():
        pass
    AnsweringWorker(with_roots).work()
    while with_roots.assemble():
        pass
    assert (reds / "t.csv").read_text() == (shared / "t.csv").read_text() != ""
    for team, other in ((RED, shared), (BLUE, reds)):
        for source, target in ((f"{other}/ok.csv", "x.csv"), ("ok.csv", f"{other}/x.csv"), (f"{other}/*.csv", "x.csv")):
            with pytest.raises(InvalidRequestError) as caught:
                submit_as(with_roots, team, source, target)
            assert caught.value.code == "place_not_allowed"
        assert str(other) not in caught.value.message.replace(f"{other}/*.csv", "")


def test_the_results_of_a_team_are_read_from_its_own_root(with_roots: RunningService) -> None:
    write(with_roots.data_root.parent / "red")
    batch = submit_as(with_roots, RED, "ok.csv", "t.csv")
    with_roots.plan()
    AnsweringWorker(with_roots).work()
    with_roots.assemble()
    with BatchClient(with_roots.url, token_of(with_roots, RED)) as client:
        assert [row["llm_output"] for row in client.results(batch.id)] == ["answer 0", "answer 1"]


def ended_as(service: RunningService, team: str, target: str, **create: Any) -> Batch:
    """A batch of a team, from its submit to its end."""
    spec = DatasetSpec(source="ok.csv", target=target, messages=[Message(role="user", content="{a}")])
    with BatchClient(service.url, token_of(service, team)) as client:
        batch = client.submit(BatchCreate(dataset=spec, model="m", **create))
        while service.plan():
            pass
        AnsweringWorker(service).work()
        while service.assemble():
            pass
        return client.get(batch.id)


@pytest.mark.parametrize("target", ["t.csv", "t/"])
@pytest.mark.parametrize("names", [{"key": "same"}, {"key": "{team}", "series": "same"}])
def test_a_team_replaces_no_target_of_another_under_the_same_key_or_series(
    service: RunningService, names: dict[str, str], target: str
) -> None:
    write(service.data_root)

    def again(team: str, number: int) -> Batch:
        named = {name: value.format(team=f"{team} {number}") for name, value in names.items()}
        return ended_as(service, team, target, **named)

    batch = again(RED, 1)
    assert batch.manifest is not None
    files = {Path(file.uri): Path(file.uri).read_bytes() for file in batch.manifest.files}
    with pytest.raises(InvalidRequestError) as caught:
        again(BLUE, 1)
    assert caught.value.code == "target_exists"
    with service.state.database.writing() as connection:  # as in a store that was made anew
        forget_batch(connection, batch.id)
    with pytest.raises(InvalidRequestError, match="wrote it"):
        again(BLUE, 2)
    assert {path: path.read_bytes() for path in files} == files
    assert again(RED, 2 if "series" in names else 1).status == "completed"


def test_a_manifest_without_a_team_is_of_the_team_whose_batch_the_store_knows(service: RunningService) -> None:
    write(service.data_root)
    ended_as(service, RED, "t.csv", key="first", series="same")
    path = service.data_root / "t.csv.manifest.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "team"}))
    with pytest.raises(InvalidRequestError, match="wrote it"):
        ended_as(service, BLUE, "t.csv", key="second", series="same")
    assert ended_as(service, RED, "t.csv", key="second", series="same").status == "completed"


def test_a_team_whose_root_is_a_bucket_uses_no_folder_and_no_other_prefix(
    s3: Bucket, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, team_roots={RED: (s3.uri("red"),), BLUE: (s3.uri("blue"),)})
    monkeypatch.delenv("BATCH_LLM_TOKEN", raising=False)
    state = ServiceState.open(settings)
    write(settings.data_roots[0])
    s3_client().put_object(Bucket=s3.name, Key="red/ok.csv", Body=b"a\n1\n")
    with running_service(state, settings.token_path.read_text().strip()) as service:
        submit_as(service, RED, s3.uri("red/ok.csv"), s3.uri("red/t.csv"))
        for team, source, target in (
            (BLUE, s3.uri("red/ok.csv"), s3.uri("blue/t.csv")),
            (RED, s3.uri("red/ok.csv"), s3.uri("blue/t.csv")),
            (RED, s3.uri("red-secret/ok.csv"), s3.uri("red/t.csv")),
            (RED, f"s3://{s3.name}-other/red/ok.csv", s3.uri("red/t.csv")),
            (RED, str(settings.data_roots[0] / "ok.csv"), s3.uri("red/t.csv")),
            (RED, "ok.csv", s3.uri("red/t.csv")),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                submit_as(service, team, source, target)
            assert caught.value.code == "place_not_allowed"


def test_a_link_that_is_put_into_the_target_after_the_submit_leads_nowhere(
    service: RunningService, tmp_path: Path
) -> None:
    write(service.data_root)
    outside = tmp_path / "outside"
    outside.mkdir()
    batch = submit(service, "ok.csv", "new/t.csv")
    service.plan()
    AnsweringWorker(service).work()
    (service.data_root / "new").symlink_to(outside)
    service.assemble()
    assert list(outside.iterdir()) == []
    assert "leads out" in (service.client.get(batch.id).progress.waiting_for or "")


def test_a_link_that_takes_the_sources_place_after_the_submit_is_not_followed(
    service: RunningService, tmp_path: Path
) -> None:
    write(service.data_root)
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,x\n2,y\n")
    batch = submit(service, "ok.csv")
    (service.data_root / "ok.csv").unlink()
    (service.data_root / "ok.csv").symlink_to(secret)
    service.plan()
    ended = service.client.get(batch.id)
    assert ended.errors is not None
    assert ended.errors.data[0].code == "place_not_allowed"
    assert str(secret) not in ended.errors.data[0].message


def test_a_link_in_the_place_of_the_targets_scratch_file_is_not_written_through(
    service: RunningService, tmp_path: Path
) -> None:
    write(service.data_root)
    secret = tmp_path / "secret"
    secret.write_text("keep")
    batch = submit(service, "ok.csv", "t.csv")
    (service.data_root / f".t.csv.{batch.id}").symlink_to(secret)
    service.plan()
    AnsweringWorker(service).work()
    service.assemble()
    assert (service.client.get(batch.id).status, secret.read_text()) == ("completed", "keep")


def test_a_folder_outside_is_not_even_listed(service: RunningService, tmp_path: Path) -> None:
    write(service.data_root)
    outside = tmp_path / "outside" / "hidden-name"
    outside.mkdir(parents=True)
    (service.data_root / "tables").mkdir()
    (service.data_root / "tables" / "link").symlink_to(tmp_path / "outside")
    for source in ("tables", "tables/**/*.csv", "tables/link/*"):
        create = {"model": "m", "dataset": {"source": source, "target": "t.csv", "messages": []}}
        create["dataset"]["messages"] = [{"role": "user", "content": "x"}]  # type: ignore[index]
        headers = {"Authorization": f"Bearer {service.token}"}
        response = httpx.post(f"{service.url}/v1/batches", json=create, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "place_not_allowed")
        assert "hidden-name" not in response.text
