"""What a task leaves in Airflow's task state store, and what a retry makes of it; nothing depends on it."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from conftest import task_instance
from foreign_server import ForeignServer
from test_operator import operator
from test_operator_other_servers import foreign
from test_operator_other_servers import operator as of_file

__all__ = ["foreign"]
pytestmark = pytest.mark.airflow


class Stored(dict[str, Any]):
    """Airflow's accessor, over a dictionary."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Broken(Stored):
    def set(self, key: str, value: Any) -> None:
        raise RuntimeError("The store is away.")

    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError("The store is away.")


def deferred(task: Any, store: Any, **ti: Any) -> str:
    """The id of the batch that a try of the task defers for."""
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": task_instance(**ti), **({} if store is None else {"task_state_store": store})})
    return str(deferral.value.trigger.batch_id)


def bury(foreign: ForeignServer) -> None:
    """Others submit more batches than are looked through."""
    foreign.batches = [{**foreign.batches[0], "id": f"other-{n}", "metadata": {}} for n in range(600)] + foreign.batches


def test_a_task_leaves_its_batch(connected: Any) -> None:
    store = Stored()
    batch_id = deferred(operator(), store)
    batch = connected.client.get(batch_id)
    url = f"{connected.url}/v1/batches/{batch_id}"
    assert store == {"batch_llm": {"batch_id": batch_id, "key": batch.key, "url": url}}


def test_a_retry_on_another_server_finds_a_batch_that_is_not_among_the_newest_any_more(foreign: ForeignServer) -> None:
    store = Stored()
    first = deferred(of_file(), store)
    bury(foreign)
    assert deferred(of_file(), store) == first
    assert deferred(of_file(), None) != first


def test_what_another_life_of_the_task_left_is_not_taken(foreign: ForeignServer) -> None:
    store = Stored()
    first = deferred(of_file(retries=2), store, max_tries=2)
    assert deferred(of_file(retries=2), store, max_tries=5) != first


@pytest.mark.parametrize("key", ["batch_llm_key", "other"])
def test_a_batch_that_is_gone_or_somebody_elses_is_not_taken(foreign: ForeignServer, key: str) -> None:
    store = Stored()
    first = deferred(of_file(), store)
    foreign.batches = [] if key == "batch_llm_key" else [{**foreign.batches[0], "metadata": {key: "x"}}]
    foreign.shape = {"id": "another"}
    assert deferred(of_file(), store) == "another" != first


@pytest.mark.parametrize("store", [Broken(), Stored(batch_llm="?"), Stored(batch_llm={"key": 1})])
def test_a_store_that_breaks_or_holds_something_else_changes_nothing(foreign: ForeignServer, store: Any) -> None:
    first = deferred(of_file(), store)
    assert deferred(of_file(), store) == first
