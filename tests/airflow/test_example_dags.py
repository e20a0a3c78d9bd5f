"""Every Dag of dags_examples, run by a real Airflow on a pool with real vLLM.

A dozen rows each; ``WHOLE=1`` takes the whole sample of 1,000 packages. The pool's model has random weights: answers
are noise, but rows, their order, types and counts are exact. What the trained model of the demo gets right is told by
tests/vllm/own_pools/test_vllm_section_model.py.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow_processes import AirflowProcesses
from matplotlib.figure import Figure
from pool import ROOT, Pool, embedding_worker

from tests.conftest import eventually

pytestmark = [pytest.mark.airflow, pytest.mark.vllm]

WHOLE = bool(os.environ.get("WHOLE"))
ROWS = 1_000 if WHOLE else 12
SECONDS = 1_800 if WHOLE else 240
DAY_ONE, DAY_TWO = "2026-02-01", "2026-02-02"


class Runs:
    """The runs of all examples, started side by side."""

    def __init__(self, airflow: AirflowProcesses, pool: Pool, folder: Path) -> None:
        self.airflow = airflow
        self.pool = pool
        self.folder = folder
        self.ids: dict[str, str] = {}

    def start(self, dag_id: str, *, day: str | None = None, **params: Any) -> str:
        """Starts a run with a dozen rows of the sample as its source, unless told otherwise."""
        conf = {"source": "few.parquet", "model": self.pool.model, **params}
        conf = {name: value for name, value in conf.items() if value is not None}
        date = f"{day}T00:00:00Z" if day else None
        self.ids[dag_id] = self.airflow.trigger(dag_id, conf=conf, logical_date=date)
        return self.ids[dag_id]

    def result(self, dag_id: str, task_id: str, run_id: str | None = None) -> Any:
        """What a task of a Dag's run gave, once that has succeeded."""
        run_id = run_id or self.ids[dag_id]
        state = self.airflow.wait_for_run(dag_id, run_id, seconds=SECONDS)
        states = self.airflow.task_states(dag_id, run_id)
        failed = [name for name, found in states.items() if found == "failed"]
        assert state == "success", (states, [self.airflow.task_log(dag_id, run_id, name)[-3_000:] for name in failed])
        return self.airflow.xcom(dag_id, run_id, task_id)

    def target(self, name: str) -> pa.Table:
        return pq.read_table(self.pool.data_root / name)


def packages() -> pa.Table:
    return pq.read_table(ROOT / "dags_examples" / "data" / "packages.parquet").slice(0, ROWS)


@pytest.fixture(scope="module")
def runs(airflow: AirflowProcesses, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("examples")
    pq.write_table(packages(), pool.data_root / "few.parquet")
    write_archive(folder / "documents.zip")
    write_corpus(pool.data_root / "corpus")
    write_exports(pool.data_root / "exports")
    started = Runs(airflow, pool, folder)
    started.start("process_documents", source=None, archive=str(folder / "documents.zip"))
    started.start("enrich_catalogue")
    started.start("moderate_content", quarantine=str(folder / "quarantine.parquet"))
    started.start("sentiment_corpus", source="corpus/")
    started.start("evaluate_models", model=None, models=[pool.model] * 2, judge=pool.model, plot=str(folder / "p.png"))
    started.start("synthesize_examples", examples=str(folder / "examples.parquet"))
    started.start("simulate_survey", source=None)
    started.start("incremental_daily", source="exports", day=DAY_ONE)
    return started


def write_archive(path: Path) -> None:
    """Texts and a PDF, made of what the packages say of themselves."""
    texts = packages()["description"].to_pylist()
    figure = Figure()
    figure.text(0.1, 0.5, "\n".join(str(texts[0])[:400].split(". ")))
    pdf = io.BytesIO()
    figure.savefig(pdf, format="pdf")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first.pdf", pdf.getvalue())
        archive.writestr("long.txt", "A text that goes on. " * 200)
        for number, text in enumerate(texts[1:]):
            archive.writestr(f"text-{number:04d}.txt", f"{text or 'nothing'}")


def write_corpus(folder: Path) -> None:
    texts = packages()["summary"].to_pylist()
    for lang, some in (("en", texts[::2]), ("other", texts[1::2])):
        (folder / f"lang={lang}").mkdir(parents=True)
        pq.write_table(pa.table({"text": some}), folder / f"lang={lang}" / "part.parquet")


def write_exports(folder: Path) -> None:
    """Two days of the same export: on the second a row is new, one has another prompt, one another size."""
    table = packages().select(["package", "summary", "installed_kib"])
    changed = [*table.to_pylist()[1:], {"package": "new", "summary": "a new one", "installed_kib": 1}]
    changed[0]["summary"] = "changed since yesterday"
    changed[1]["installed_kib"] = 123_456
    for day, rows in ((DAY_ONE, table), (DAY_TWO, pa.Table.from_pylist(changed, table.schema))):
        (folder / f"ds={day}").mkdir(parents=True)
        pq.write_table(rows, folder / f"ds={day}" / "part-0.parquet")


def statuses(table: pa.Table) -> Mapping[str, int]:
    return {entry["values"]: entry["counts"] for entry in table["llm_status"].value_counts().to_pylist()}


def test_survey(runs: Runs) -> None:
    counts = runs.result("simulate_survey", "count_answers")
    assert [sum(answers.values()) for answers in counts.values()] == [3, 3, 3]
    table = runs.target("survey.parquet")
    assert table["name"].to_pylist() == ["Ada"] * 3 + ["Ben"] * 3 + ["Chi"] * 3
    assert set(table["llm_output"].to_pylist()) <= {"yes", "rather yes", "rather no", "no"}


def test_documents(runs: Runs) -> None:
    merged = runs.result("process_documents", "merge")
    assert len(merged) == ROWS + 1
    assert merged["long.txt"]["pieces"] == 3
    table = runs.target("document-pieces.parquet")
    assert table.num_rows == sum(document["pieces"] for document in merged.values())
    assert table.schema.field("names").type == pa.list_(pa.string())
    assert any(row["text"] for row in table.to_pylist() if row["document"] == "first.pdf")


def test_catalogue(runs: Runs) -> None:
    counts = runs.result("enrich_catalogue", "count_audiences")
    table = runs.target("catalogue.parquet")
    assert table["package"].to_pylist() == packages()["package"].to_pylist()
    assert sum(counts.values()) == ROWS
    types = [table.schema.field(name).type for name in ("audience", "difficulty", "needs_network", "platforms")]
    assert types == [pa.string(), pa.int64(), pa.bool_(), pa.list_(pa.string())]
    assert statuses(table).get("success", 0) > 0


def test_moderation(runs: Runs) -> None:
    aside = runs.result("moderate_content", "set_aside")
    table = runs.target("moderated.parquet")
    assert table.num_rows == ROWS
    flagged = [row for row in table.to_pylist() if row["insult"] or row["advertising"] or row["personal_data"]]
    assert pq.read_metadata(runs.folder / "quarantine.parquet").num_rows == aside
    assert aside == len(flagged) + table.num_rows - statuses(table)["success"]


def test_corpus(runs: Runs) -> None:
    moods = runs.result("sentiment_corpus", "aggregate")
    assert sum(mood["texts"] for mood in moods) == ROWS
    assert {mood["lang"] for mood in moods} == {"en", "other"}
    assert {mood["mood"] for mood in moods} <= {"positive", "neutral", "negative"}


def test_evaluation(runs: Runs) -> None:
    metrics = runs.result("evaluate_models", "measure")
    assert metrics["right_a"] == metrics["right_b"]  # it is the same model twice
    judged = runs.target("evaluation/judged.parquet")
    assert judged.num_rows == ROWS
    assert judged["a"].to_pylist() == judged["b"].to_pylist()
    assert (runs.folder / "p.png").read_bytes().startswith(b"\x89PNG")


def test_examples(runs: Runs) -> None:
    counts = runs.result("synthesize_examples", "keep_different")
    assert counts["samples"] == 4 * ROWS
    assert 0 < counts["kept"] <= counts["samples"]
    assert pq.read_metadata(runs.folder / "examples.parquet").num_rows == counts["kept"]


def test_only_what_changed_since_yesterday_is_computed(runs: Runs) -> None:
    first = runs.result("incremental_daily", "report")
    assert (first["rows"], first["reused"]) == (ROWS, 0)
    second = runs.result("incremental_daily", "report", runs.start("incremental_daily", source="exports", day=DAY_TWO))
    assert (second["rows"], second["reused"]) == (ROWS, ROWS - 2)
    (target,) = (runs.pool.data_root / "labels" / f"ds={DAY_TWO}").glob("*.parquet")
    assert pq.read_table(target)["package"].to_pylist()[-1] == "new"


def test_embeddings(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> None:
    with embedding_worker(runs.pool, tmp_path_factory.mktemp("embed")) as model, runs.pool.client() as client:
        eventually(lambda: model in [one.id for one in client.models().data], seconds=180, what="the second worker")
        runs.start("embed_corpus", model=model)
        nearest = runs.result("embed_corpus", "nearest")
    assert all(-1 <= one["likeness"] <= 1.0001 for one in nearest)
    table = runs.target("vectors.parquet")
    assert table.num_rows == ROWS
    assert table.schema.field("llm_embedding").type == pa.list_(pa.float32())
    assert len({len(vector) for vector in table["llm_embedding"].to_pylist()}) == 1
