"""Takes the guards out of a copy of the package, one at a time, and shows which tests turn red.

    python -m tests.chaos.mutants

A guard whose loss no test sees is a guard that anybody may take out: the command then ends with 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
COPIED: Final = ("airflow_batch_llm", "tests", "dags_examples", "pyproject.toml")
TESTS: Final = (
    "tests/store",
    "tests/service/test_service_leases.py",
    "tests/service/test_service_duties.py",
    "tests/service/test_service_generations.py",
    "tests/service/test_service_round_trip.py",
)
SHOWN: Final = 12
EXPIRED: Final = "chunks.c.lease_until < select(now).scalar_subquery()"


@dataclass(frozen=True)
class Mutant:
    """A guard, and what stands in its place without it."""

    name: str
    folder: str
    """Where in the package it is looked for."""
    guard: str
    instead: str
    after: str = ""
    """It is the first one after this."""

    def found_in(self, package: Path) -> list[Path]:
        """The files that the guard stands in."""
        return [path for path in sorted((package / self.folder).rglob("*.py")) if self._place(path.read_text()) >= 0]

    def apply(self, package: Path) -> Path:
        """Takes the guard out; gives the file it was in."""
        found = self.found_in(package)
        if len(found) != 1:
            raise SystemExit(
                f"The guard {self.guard!r} of mutant {self.name!r} is in {len(found)} files: mend this list."
            )
        text = found[0].read_text()
        place = self._place(text)
        found[0].write_text(text[:place] + self.instead + text[place + len(self.guard) :])
        return found[0]

    def _place(self, text: str) -> int:
        start = text.find(self.after) if self.after else 0
        return -1 if start < 0 else text.find(self.guard, start)


MUTANTS: Final = (
    Mutant("the fence asks for no attempt", "store", "        chunks.c.attempt == lease.attempt,\n", "", "def _fence("),
    Mutant("a lease never runs out", "store", EXPIRED, f"{EXPIRED} - 1e9"),
    Mutant("a lease has always run out", "store", EXPIRED, f"{EXPIRED} + 1e9"),
    Mutant("a key is not looked up", "store", "self._last_generation(connection, team, key)", "None"),
    Mutant("a duty asks for no attempt", "store", "        duties.c.attempt == duty.attempt,\n", "", "def _held("),
    Mutant(
        "a part's SHA-256 is not compared when it is assembled",
        "service",
        "if hashlib.sha256(content).hexdigest() != part.sha256:",
        "if False:",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--seeds", type=int, default=20, help="chaos schedules for each [default: 20]")
    given = parser.parse_args()
    survived = []
    for number, mutant in enumerate(MUTANTS, start=1):
        if given.only in (None, number):
            red = _red(mutant, given.seeds)
            print(
                f"\n{number}. {mutant.name}: {len(red)} tests turn red"
                if red
                else f"\n{number}. {mutant.name}: SURVIVED"
            )
            print("\n".join(f"   {test}" for test in red[:SHOWN]))
            if len(red) > SHOWN:
                print(f"   … and {len(red) - SHOWN} more")
            sys.stdout.flush()
            survived += [] if red else [mutant.name]
    sys.exit(1 if survived else 0)


def _red(mutant: Mutant, seeds: int) -> list[str]:
    """The tests that see that a guard is gone, and the first chaos seed that does."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in COPIED:
            source = ROOT / part
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / part, ignore=ignored) if source.is_dir() else shutil.copy(source, copy)
        where = mutant.apply(copy / "airflow_batch_llm").relative_to(copy)
        print(f"{mutant.name} ({where}) …", file=sys.stderr)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *TESTS]
        told = _output(command, copy)
        if "passed" not in told and "failed" not in told:
            raise SystemExit(f"The tests did not run:\n{told}")
        red = re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.MULTILINE)
        chaos = _output([sys.executable, "-m", "tests.chaos", "--store=sqlite", f"--schedules={seeds}"], copy)
        broken = re.search(r"^Seed (\d+) on \w+ broke a promise.*\n  \* (.*)$", chaos, re.MULTILINE)
        return red + ([f"chaos seed {broken[1]}: {broken[2]}"] if broken else _fell(chaos))


def _fell(chaos: str) -> list[str]:
    """The harness itself stumbled over what the guard let through."""
    return [f"chaos: {chaos.strip().splitlines()[-1]}"] if "Traceback" in chaos else []


def _output(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
