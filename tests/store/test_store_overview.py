"""Pages of batches: what fits, in which order, how it is counted, and what it costs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, text, update

from airflow_batch_llm.models import BatchStatus, PauseReason
from airflow_batch_llm.page_wire import OverviewQuery
from airflow_batch_llm.store.overview import Overviews
from airflow_batch_llm.store.tables import batches
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import CHAT, TEAM, Store, store

__all__ = ["store"]
pytestmark = BOTH_STORES


@pytest.fixture
def overviews(store: Store) -> Overviews:
    return Overviews(store.database)


def origin(dag_id: str = "d", task_id: str = "t", run_id: str = "r", map_index: int = -1) -> dict[str, Any]:
    return {"deployment": "air", "dag_id": dag_id, "task_id": task_id, "run_id": run_id, "map_index": map_index}


def made(store: Store, name: str, *, status: str = BatchStatus.COMPLETED, team: str = TEAM, **values: Any) -> str:
    """A batch of that name, a second younger than the one before."""
    store.now += 1
    new = {"id": name, "team": team, "key": name, "generation": 1, "content_sha256": "c", "endpoint": CHAT}
    row = {**new, "model": "m", "status": status, "created_at": store.now, **values}
    with store.database.writing() as connection:
        connection.execute(insert(batches).values(row))
    return name


def page(overviews: Overviews, team: str = TEAM, **asked: Any) -> list[str]:
    return [record["id"] for record in overviews.page(team, OverviewQuery(**asked)).records]


def test_pages_follow_one_another_newest_first_without_a_gap(store: Store, overviews: Overviews) -> None:
    names = [made(store, f"b{number}", **origin()) for number in range(7)]
    with store.database.writing() as connection:  # equals in time
        connection.execute(update(batches).where(batches.c.id.in_(["b2", "b3", "b4"])).values(created_at=1.0))
    expected = ["b6", "b5", "b1", "b0", "b4", "b3", "b2"]
    for asked in ({}, {"run_id": "r"}):  # from another index
        paged = [page(overviews, **asked, limit=2, offset=offset) for offset in range(0, 8, 2)]
        assert [name for names in paged for name in names] == expected
    assert sorted(expected) == names


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"models": ["big", "none"]}, ["c"]),
        ({"dag_ids": ["reviews"]}, ["b", "a"]),
        ({"dag_ids": ["reviews"], "run_id": "r1", "task_id": "count"}, ["b"]),
        ({"run_id": "r1"}, ["c", "b", "a"]),
        ({"map_index": 3}, ["c"]),
        ({"batch_ids": ["a", "d", "other", "theirs"]}, ["d", "a"]),
        ({"status": ["failed", "completed"]}, ["d", "c"]),
        ({"status": ["paused"]}, ["b"]),
        ({"status": ["in_progress"]}, ["a"]),
        ({"status": []}, []),
        ({"status": ["in_progress", "paused"], "dag_ids": ["mails"]}, []),
    ],
    ids=str,
)
def test_all_that_fits_every_filter_is_shown(
    store: Store, overviews: Overviews, asked: dict[str, Any], expected: list[str]
) -> None:
    made(store, "a", status="in_progress", **origin("reviews", "classify", "r1"))
    made(store, "b", status="in_progress", paused=PauseReason.REQUESTED, **origin("reviews", "count", "r1"))
    made(store, "c", model="big", **origin("mails", "classify", "r1", 3))
    made(store, "d", status="failed")
    made(store, "theirs", team="red", model="big", **origin("reviews", "classify", "r1"))
    assert page(overviews, **asked) == expected


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("ATCH_1", ["batch_1"]),
        ("a_KEY", ["batch_2"]),
        ("a%key", []),
        ("a/key", []),
        ("Reviews", ["batch_3"]),
        ("CLASSIFY", ["batch_3"]),
        ("run__2", ["batch_3"]),
        ("qwen", ["batch_4"]),
        ("out/LABELS", ["batch_5"]),
        ("KÖLN", ["batch_6"]),
        ("öL", ["batch_6"]),
        ("kÖ%", []),
        ("a prompt", []),
        ("batch", [f"batch_{number}" for number in (6, 5, 4, 3, 2, 1)]),
    ],
)
def test_a_search_finds_a_part_of_a_name_in_whatever_case_and_to_the_letter(
    store: Store, overviews: Overviews, search: str, expected: list[str]
) -> None:
    made(store, "batch_1", key="k1")
    made(store, "batch_2", key="A_key")
    made(store, "batch_3", key="k3", **origin("reviews", "classify", "run__2"))
    made(store, "batch_4", key="k4", model="Qwen/Qwen3-8B")
    made(store, "batch_5", key="k5", dataset={"target": "s3://out/Labels/", "messages": [{"content": "a prompt"}]})
    made(store, "batch_6", key="k6", model="Köln")
    assert page(overviews, search=search) == expected


def test_statuses_are_counted_under_all_filters_but_their_own(store: Store, overviews: Overviews) -> None:
    for number in range(3):
        made(store, f"done{number}", **origin("d"))
    made(store, "runs", status="in_progress", **origin("d"))
    made(store, "rests", status="in_progress", paused=PauseReason.CANARY, **origin("d"))
    made(store, "late", status="finalizing", **origin("other"))
    found = overviews.page(TEAM, OverviewQuery(status=["paused"], dag_ids=["d"], limit=1, offset=5))
    assert found.statuses == {"completed": 3, "in_progress": 1, "paused": 1}
    assert found.records == []


def test_by_priority_comes_first_what_the_pool_takes_first_and_last_what_ended_longest_ago(
    store: Store, overviews: Overviews
) -> None:
    made(store, "old", priority=900)
    made(store, "low", status="in_progress", priority=-5)
    made(store, "first", status="in_progress")
    made(store, "second", status="validating")
    made(store, "due", status="in_progress", expires_at=9e9)
    made(store, "raised", status="in_progress", raised=True)
    made(store, "high", status="in_progress", priority=7)
    made(store, "rests", status="in_progress", priority=999, paused=PauseReason.REQUESTED)
    made(store, "new", status="failed")
    assert page(overviews, order="priority") == [
        *("raised", "high", "due", "first", "second", "low", "rests"),
        *("new", "old"),
    ]


@pytest.mark.parametrize("visible", [[], ["d"], ["d", "x'y", *map(str, range(19_000))]], ids=len)
def test_with_visible_dags_nothing_of_another_dag_or_of_none_is_shown_or_counted(
    store: Store, overviews: Overviews, visible: list[str]
) -> None:
    made(store, "seen", model="small", **origin("d"))
    made(store, "hidden", model="secret", **origin("e"))
    made(store, "dagless", model="plain", status="failed")
    seen = ["seen"] if visible else []
    for asked in ({}, {"batch_ids": ["seen", "hidden", "dagless"]}, {"search": "e"}, {"order": "priority"}):
        found = overviews.page(TEAM, OverviewQuery(visible_dag_ids=visible, **asked))
        assert [record["id"] for record in found.records] == seen
        assert found.statuses == ({"completed": 1} if visible else {})
    assert page(overviews, visible_dag_ids=visible, dag_ids=["e"]) == []
    assert overviews.choices(TEAM).among(OverviewQuery(visible_dag_ids=visible)) == (
        (["d"], ["small"]) if visible else ([], [])
    )
    assert overviews.choices(TEAM).among(OverviewQuery()) == (["d", "e"], ["plain", "secret", "small"])


def test_with_visible_deployments_nothing_of_another_airflow_is_shown_or_counted(
    store: Store, overviews: Overviews
) -> None:
    made(store, "own", model="small", **origin("d"))
    made(store, "foreign", model="secret", **{**origin("d"), "deployment": "another"})
    asked = OverviewQuery(visible_dag_ids=["d"], visible_deployments=[origin("d")["deployment"]])
    found = overviews.page(TEAM, asked)
    assert [record["id"] for record in found.records] == ["own"]
    assert found.statuses == {"completed": 1}
    assert overviews.choices(TEAM).among(asked) == (["d"], ["small"])


def test_the_longest_names_that_may_be_given_fit_into_the_index(store: Store, overviews: Overviews) -> None:
    """Of letters that take four bytes each, and by chance, so that Postgres cannot store them smaller."""
    drawn = random.Random(7)
    model, dag_id = ("".join(chr(drawn.randrange(0x20000, 0x2A6DF)) for _ in range(length)) for length in (512, 250))
    made(store, "long", model=model, **origin(dag_id, task_id=dag_id, run_id=dag_id))
    assert page(overviews, dag_ids=[dag_id], models=[model]) == ["long"]


def test_teams_are_those_that_have_a_batch(store: Store, overviews: Overviews) -> None:
    assert overviews.teams() == []
    for team in ("red", "blue", "red", "green"):
        made(store, f"{team}{store.now}", team=team)
    assert overviews.teams() == ["blue", "green", "red"]


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, Any]]]:
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH")):
            seen.append((statement, parameters))

    event.listen(store.database._engine, "before_cursor_execute", note)
    yield seen
    event.remove(store.database._engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    "asked",
    [{}, {"status": ["failed"], "dag_ids": ["d3"]}, {"visible_dag_ids": ["d"]}, {"order": "priority"}, {"offset": 9}],
    ids=str,
)
def test_a_page_reads_no_record_but_its_own(store: Store, overviews: Overviews, asked: dict[str, Any]) -> None:
    """However many there are: what is only counted or passed over comes from the index."""
    for number in range(30):
        made(store, f"b{number}", **origin(f"d{number}"))
    with statements(store) as made_for_page:
        overviews.page(TEAM, OverviewQuery(**asked))
    told = [plan(store, *statement) for statement in made_for_page if "FROM batches" in statement[0]]
    counts, ids, *_ = told
    for each in (counts, ids):
        assert "ix_batches_overview" in each
        assert "COVERING INDEX" in each or "Index Only Scan" in each
    assert len(made_for_page) <= 4


def plan(store: Store, statement: str, parameters: Any) -> str:
    with store.database.reading() as connection:
        if connection.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            return "\n".join(row[3] for row in rows)
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # a table as small as this is read whole
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        rows = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).all()
        return json.dumps(rows[0][0])
