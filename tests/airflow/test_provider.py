"""What Airflow finds of this package by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import validate
from pool import ROOT, SECTION_MODEL_NAME
from section_groups import GROUPS, PROMPT

from airflow_batch_llm.get_provider_info import get_provider_info
from airflow_batch_llm.links.batch_llm import BatchLLMLink
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.plugins.batch_llm import BatchLLMPlugin
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger
from airflow_batch_llm.triggers.search import BatchLLMSearchTrigger

pytestmark = pytest.mark.airflow


def test_the_provider_info_is_valid_in_airflows_own_words() -> None:
    validate(get_provider_info(), json.loads((files("airflow") / "provider_info.schema.json").read_text()))


def test_every_module_and_class_that_the_provider_names_exists() -> None:
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for module in info[kind][0]["python-modules"]:
            import_module(module)
    classes = [*info["extra-links"], *(found["class-name"] for found in info["task-decorators"])]
    classes += [*(found["hook-class-name"] for found in info["connection-types"])]
    for path in classes:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name)


def test_every_trigger_is_one_that_the_provider_names() -> None:
    [named] = get_provider_info()["triggers"]
    assert {BatchLLMTrigger.__module__, BatchLLMSearchTrigger.__module__} <= set(named["python-modules"])


def test_airflow_shows_a_form_for_the_connection() -> None:
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManager()
    assert ProvidersManagerTaskRuntime().hooks["batch_llm"].hook_name == "Batch LLM"
    assert "extra__batch_llm__deployment" in manager.connection_form_widgets
    behaviour: Any = manager.field_behaviours["batch_llm"]
    assert behaviour["relabeling"]["password"] == "Token"
    assert "airflow_batch_llm.links.batch_llm.BatchLLMLink" in manager.extra_links_class_names


def test_the_provider_info_imports_no_airflow() -> None:
    check = "import sys, airflow_batch_llm.get_provider_info; sys.exit('airflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_plugin_registers_the_link() -> None:
    assert [type(link) for link in BatchLLMPlugin.operator_extra_links] == [BatchLLMLink]


@pytest.mark.parametrize(
    ("base_url", "conn_id", "link"),
    [
        (
            "https://airflow.example/here/",
            "batch_llm_default",
            "https://airflow.example/here/plugin/llm-batches?batch=b_1",
        ),
        ("http://localhost:8080", "night", "http://localhost:8080/plugin/llm-batches?batch=b_1&conn_id=night"),
        ("", "batch_llm_default", "/plugin/llm-batches?batch=b_1"),
    ],
)
def test_the_link_of_a_batch_leads_to_its_page_in_airflow(
    monkeypatch: pytest.MonkeyPatch, base_url: str, conn_id: str, link: str
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    task = BatchLLMOperator(task_id="t", source="a.csv", target="b.csv", model="tiny", prompt="{x}", conn_id=conn_id)
    task.linked_batch = "b_1"
    assert BatchLLMLink().get_link(task, ti_key=None) == link


def test_a_task_without_a_batch_has_an_empty_link() -> None:
    task = BatchLLMOperator(task_id="t", source="a.csv", target="b.csv", model="tiny", prompt="{x}")
    assert BatchLLMLink().get_link(task, ti_key=None) == ""


def test_the_example_dags_import_and_the_demos_own_code_is_no_dag() -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(ROOT / "dags_examples")
    assert bag.import_errors == {}
    assert set(bag.dags) == {path.stem for path in (ROOT / "dags_examples").glob("*.py")}
    assert bag.dags["classify_packages"].task_dict["count_labels"].upstream_task_ids == {"classify"}


def test_the_example_dag_asks_what_the_demos_model_was_trained_on() -> None:
    from airflow.dag_processing.dagbag import DagBag

    dag = DagBag(ROOT / "dags_examples").dags["classify_packages"]
    classify = dag.task_dict["classify"]
    assert dag.params["model"] == SECTION_MODEL_NAME
    assert [(message.role, message.content) for message in classify.messages] == [("user", PROMPT)]
    assert classify.choices == list(GROUPS)
