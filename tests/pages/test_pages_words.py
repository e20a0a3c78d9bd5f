"""Numbers, times and amounts as the pages write them, by the module that does it, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.conftest import RunningService
from tests.pages.conftest import logged_in
from tests.pages.looking import Looks

pytestmark = pytest.mark.browser

NOTHING = "\N{EN DASH}"
WORDS = {
    "whole(1234567)": "1,234,567",
    "whole(null)": NOTHING,
    "compact(9999)": "9,999",
    "compact(1234567)": "1.2M",
    "counted(1, 'row')": "1 row",
    "counted(0, 'row')": "0 rows",
    "counted(2, 'batch', 'batches')": "2 batches",
    "rate(3.14, 'rows/s')": "3.1 rows/s",
    "rate(0.034, 'rows/s')": "0.034 rows/s",
    "rate(0, 'rows/s')": "0 rows/s",
    "rate(null, 'rows/s')": NOTHING,
    "percent(0.5)": "50%",
    "percent(0)": "0%",
    "percent(1)": "100%",
    "percent(0.00001)": "<0.1%",
    "percent(0.99999)": ">99.9%",
    "duration(0)": "<1 s",
    "duration(59.6)": "1 min",
    "duration(3600)": "1 h",
    "duration(3661)": "1 h 1 min",
    "duration(200000)": "2 d 7 h",
    "duration(null)": NOTHING,
    "ago(100, 102)": "just now",
    "ago(100, 99)": "just now",
    "ago(0, 7300)": "2 h ago",
    "money(0, 'EUR')": "0.00 EUR",
    "money(0.4, 'EUR')": "0.40 EUR",
    "money(0.00123, 'EUR')": "0.0012 EUR",
    "money(1234.5, 'EUR')": "1,234.50 EUR",
    "money(null, 'EUR')": NOTHING,
}


@pytest.fixture
def page(looks: Looks, page_service: RunningService) -> Page:
    return logged_in(looks, page_service)


def test_every_number_has_its_unit_and_none_says_more_than_it_is(page: Page) -> None:
    names = "whole, compact, counted, rate, percent, duration, ago, money"
    calls = ", ".join(WORDS)
    said = page.evaluate(
        f"async () => {{ const {{{names}}} = await import('/ui/static/format.js'); return [{calls}]; }}"
    )
    assert dict(zip(WORDS, said, strict=True)) == WORDS


def test_a_chart_has_a_point_for_each_stretch_also_where_nothing_was_done(page: Page) -> None:
    timeline = {
        "bucket_seconds": 5,
        "buckets": [
            {"at": 100, "rows": 4, "failed": 1, "prompt_tokens": 40, "completion_tokens": 10},
            {"at": 110, "rows": 2, "failed": 0, "prompt_tokens": 20, "completion_tokens": 5},
        ],
    }
    assert charted(page, timeline, 99, 117) == (5, [(95, 0, 0), (100, 4, 10), (105, 4, 0), (110, 6, 5), (115, 6, 0)])


def test_a_batch_that_stood_still_for_a_month_has_a_chart_of_some_hundred_points(page: Page) -> None:
    buckets = [{"at": at, "rows": 1, "failed": 0, "prompt_tokens": 9, "completion_tokens": 1} for at in range(60)]
    step, points = charted(page, {"bucket_seconds": 1, "buckets": buckets}, 0, 30 * 86_400)
    assert len(points) <= 241
    assert [rows for _, rows, _ in points] == [60] * len(points)
    assert sum(tokens for *_, tokens in points) * step == pytest.approx(600)


def charted(page: Page, timeline: dict[str, Any], start: float, end: float) -> tuple[float, list[tuple[float, ...]]]:
    """How long a point is, and of each its time, the rows until then and its tokens a second."""
    script = "async asked => (await import('/ui/static/chart.js')).points(...asked)"
    found = page.evaluate(script, [timeline, start, end])
    return found["step"], [(point["at"], point["rows"], point["tokens"]) for point in found["series"]]
