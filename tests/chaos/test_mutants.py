"""The list of guards that are taken out on demand follows the code."""

from __future__ import annotations

import pytest

from tests.chaos.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_guard_that_can_be_taken_out_stands_in_one_file(mutant: Mutant) -> None:
    assert len(mutant.found_in(ROOT / "airflow_batch_llm")) == 1
