"""What a batch costs and saves, at the prices that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.page_wire import Cost
from airflow_batch_llm.service.cost import cost_of
from airflow_batch_llm.settings import ServiceSettings

PRICES = {"gpu_hour_price": 3.6, "api_input_price": 0.5, "api_output_price": 2.0}
SPENT = {"prompt_tokens": 4_000_000, "cached_tokens": 1_000_000, "completion_tokens": 500_000, "gpu_seconds": 600.0}


def cost(prices: dict[str, Any] = PRICES, **spent: Any) -> Cost:
    return cost_of(SPENT | spent, ServiceSettings(home=Path("home"), data_roots=(), **prices))


def test_the_own_price_is_that_of_the_engines_time_and_the_apis_that_of_all_tokens() -> None:
    found = cost(PRICES | {"currency": "EUR"})
    assert (found.own, found.api) == (pytest.approx(0.6), pytest.approx(3.0))
    assert found.saving == pytest.approx(0.8)
    assert (found.currency, found.cached_tokens, found.gpu_hour_price) == ("EUR", 1_000_000, 3.6)


def test_a_dearer_engine_saves_less_than_nothing() -> None:
    assert cost(gpu_seconds=6_000.0).saving == pytest.approx(-1.0)


def test_an_engine_that_costs_nothing_saves_all() -> None:
    assert cost(PRICES | {"gpu_hour_price": 0.0}).saving == 1.0


@pytest.mark.parametrize("missing", PRICES)
def test_where_a_price_is_missing_what_needs_it_is_left_open(missing: str) -> None:
    found = cost({name: price for name, price in PRICES.items() if name != missing})
    assert (found.own is None) == (missing == "gpu_hour_price")
    assert (found.api is None) == (missing != "gpu_hour_price")
    assert found.saving is None


def test_without_any_price_nothing_is_said_to_be_free() -> None:
    for found in (cost({}), cost({}, prompt_tokens=0, completion_tokens=0, gpu_seconds=0.0)):
        assert (found.own, found.api, found.saving) == (None, None, None)


def test_embeddings_which_have_no_answer_tokens_need_no_price_of_them() -> None:
    found = cost({"gpu_hour_price": 3.6, "api_input_price": 0.5}, completion_tokens=0)
    assert (found.api, found.saving) == (pytest.approx(2.0), pytest.approx(0.7))


@pytest.mark.parametrize("prices", [PRICES, PRICES | {"api_input_price": 0.0, "api_output_price": 0.0}])
def test_what_costs_nothing_elsewhere_has_no_share_that_is_saved(prices: dict[str, Any]) -> None:
    found = cost(prices, prompt_tokens=0, completion_tokens=0, gpu_seconds=0.0)
    assert (found.own, found.api, found.saving) == (0.0, 0.0, None)
