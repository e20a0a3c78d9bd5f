"""What a batch has cost, beside what the same tokens cost at an API that answers at once. Reckons only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from airflow_batch_llm.page_wire import Cost
from airflow_batch_llm.settings import ServiceSettings

_SECONDS_AN_HOUR: Final = 3_600
_MILLION: Final = 1_000_000


def cost_of(record: Mapping[str, Any], settings: ServiceSettings) -> Cost:
    """The cost of a stored batch at the prices that the service is told.

    Tokens and engine time are those that were spent on it: rows that got the answer of an equal row have none.
    """
    own = _own(record["gpu_seconds"], settings.gpu_hour_price)
    api = _api(record, settings)
    return Cost(
        currency=settings.currency,
        prompt_tokens=record["prompt_tokens"],
        cached_tokens=record["cached_tokens"],
        completion_tokens=record["completion_tokens"],
        gpu_seconds=record["gpu_seconds"],
        gpu_hour_price=settings.gpu_hour_price,
        own=own,
        api_input_price=settings.api_input_price,
        api_output_price=settings.api_output_price,
        api=api,
        saving=None if own is None or not api else 1 - own / api,
    )


def _own(gpu_seconds: float, hour_price: float | None) -> float | None:
    return None if hour_price is None else gpu_seconds / _SECONDS_AN_HOUR * hour_price


def _api(record: Mapping[str, Any], settings: ServiceSettings) -> float | None:
    """None where the price is missing of a kind of tokens that the batch has: embeddings need none of answers."""
    asked = _of_tokens(record["prompt_tokens"], settings.api_input_price)
    answered = _of_tokens(record["completion_tokens"], settings.api_output_price)
    nothing_is_priced = settings.api_input_price is None and settings.api_output_price is None
    return None if asked is None or answered is None or nothing_is_priced else asked + answered


def _of_tokens(tokens: int, million_price: float | None) -> float | None:
    if tokens == 0:
        return 0.0
    return None if million_price is None else tokens / _MILLION * million_price
