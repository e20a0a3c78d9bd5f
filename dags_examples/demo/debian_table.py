# /// script
# requires-python = ">=3.11"
# dependencies = ["pyarrow", "python-debian"]
# ///
"""Makes a table of all packages from Debian's public index, and from it the sample of the demo.

The index is two files of every Debian mirror: `main/binary-amd64/Packages.xz` and `main/i18n/Translation-en.xz` below
`https://deb.debian.org/debian/dists/bookworm/`. Unpack both, then::

    .venv/bin/uv run --no-project dags_examples/demo/debian_table.py Packages Translation-en --table debian.jsonl
        --sample dags_examples/data/packages.parquet

The table has one JSON line per package, with its source package and its section. The sample is 1,000 of those that the
demo's model was not trained on, the same ones every time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from debian.deb822 import Deb822, Packages
from section_groups import is_held_out

SAMPLE_ROWS = 1000
SEED = 7
SAMPLE_COLUMNS = pa.schema(
    {
        "package": pa.string(),
        "version": pa.string(),
        "section": pa.string(),
        "priority": pa.string(),
        "maintainer": pa.string(),
        "homepage": pa.string(),
        "installed_kib": pa.int64(),
        "tags": pa.list_(pa.string()),
        "summary": pa.string(),
        "description": pa.string(),
    }
)


def rows(index: Path, translation: Path) -> Iterator[dict[str, Any]]:
    """One row per package of the index, in its order."""
    with translation.open("rb") as stream:
        long_texts = {
            entry["Description-md5"]: entry["Description-en"]
            for entry in Deb822.iter_paragraphs(stream, use_apt_pkg=False)
        }
    with index.open("rb") as stream:
        for entry in Packages.iter_paragraphs(stream, use_apt_pkg=False):
            yield {
                "package": entry["Package"],
                "source": entry.source,
                "version": entry["Version"],
                "section": entry["Section"].rpartition("/")[2],
                "priority": entry["Priority"],
                "maintainer": entry["Maintainer"].partition(" <")[0],
                "homepage": entry.get("Homepage"),
                "installed_kib": int(entry.get("Installed-Size", 0)),
                "tags": [tag.strip() for tag in entry.get("Tag", "").split(",") if tag.strip()],
                "summary": entry["Description"].splitlines()[0],
                "description": _plain(long_texts.get(entry.get("Description-md5"), "")),
            }


def _plain(text: str) -> str:
    """A long description without its first line, which is the summary, and without Debian's marks."""
    lines = [line.removeprefix(" ") for line in text.splitlines()[1:]]
    return "\n".join("" if line == "." else line for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="the unpacked file Packages")
    parser.add_argument("translation", type=Path, help="the unpacked file Translation-en")
    parser.add_argument("--table", type=Path, required=True, help="the JSON lines to write")
    parser.add_argument("--sample", type=Path, help="the Parquet file to write, of packages that are held out")
    given = parser.parse_args()
    table = list(rows(given.index, given.translation))
    with given.table.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in table)
    print(f"{given.table}: {len(table):,} packages")
    if given.sample:
        held_out = [row for row in table if is_held_out(row["source"])]
        chosen = sorted(random.Random(SEED).sample(range(len(held_out)), SAMPLE_ROWS))  # noqa: S311 (not a secret)
        sample = pa.Table.from_pylist([held_out[number] for number in chosen], schema=SAMPLE_COLUMNS)
        pq.write_table(sample, given.sample, compression="zstd", compression_level=19)
        print(f"{given.sample}: {SAMPLE_ROWS:,} of the {len(held_out):,} that are held out")


if __name__ == "__main__":
    main()
