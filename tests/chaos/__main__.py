"""Many schedules: ``python -m tests.chaos --schedules N --seed S --store sqlite|postgres|both``.

Stops at the first schedule that broke a promise, with its seed and its log.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.schedule import Outcome, run
from tests.chaos.stores import StoreKind, fresh_stores, memory

SHOWN_EVERY = 25


def main() -> None:
    given = _arguments()
    kinds: list[StoreKind] = ["sqlite", "postgres"] if given.store == "both" else [given.store]
    failed = 0
    for kind in kinds:
        with tempfile.TemporaryDirectory(dir=memory()) as folder, fresh_stores(kind, Path(folder)) as fresh:
            totals, begun = Totals(kind), time.monotonic()
            for seed in range(given.seed, given.seed + given.schedules):
                outcome = run(seed, fresh, steps=given.steps)
                totals.add(outcome)
                if outcome.broken:
                    failed += 1
                    print(failure(outcome, kind), flush=True)
                    if not given.go_on:
                        break
                if totals.schedules % SHOWN_EVERY == 0:
                    print(f"{totals} in {time.monotonic() - begun:.0f} s", flush=True)
            print(f"{totals} in {time.monotonic() - begun:.0f} s", flush=True)
            failed += totals.rows == 0  # then nothing was tried
    sys.exit(1 if failed else 0)


class Totals:
    """What many schedules came to."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.schedules = self.steps = self.rows = self.asked_again = self.broken = 0
        self.faults: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.schedules += 1
        self.steps += outcome.steps
        self.rows += outcome.rows
        self.asked_again += outcome.asked_again
        self.broken += bool(outcome.broken)
        self.faults += outcome.faults
        self.statuses += outcome.statuses

    def __str__(self) -> str:
        faults = ", ".join(f"{count:,} {fault}" for fault, count in sorted(self.faults.items()))
        ends = ", ".join(f"{count:,} {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.kind}: {self.schedules:,} schedules, {self.steps:,} steps, {self.rows:,} rows checked, "
            f"{self.asked_again:,} rows asked again, {self.broken} schedules broke a promise\n"
            f"  batches: {ends}\n  faults: {faults}"
        )


def failure(outcome: Outcome, kind: str) -> str:
    """A schedule that broke a promise, as its reader needs it."""
    lines = "\n".join(outcome.log)
    wrong = "\n".join(f"  * {what}" for what in outcome.broken)
    again = f"python -m tests.chaos --schedules 1 --seed {outcome.seed} --store {kind}"
    return f"{lines}\n\nSeed {outcome.seed} on {kind} broke a promise (again: {again}):\n{wrong}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the next ones count on")
    parser.add_argument("--store", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--steps", type=int, help="of each schedule, before the faults stop [default: its seed says]")
    parser.add_argument("--go-on", action="store_true", help="after a schedule that broke a promise")
    return parser.parse_args()


if __name__ == "__main__":
    main()
