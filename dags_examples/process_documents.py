"""Reads an archive of texts and PDFs, extracts typed fields from every piece, and merges them per document.

To use it on your own documents: give the path of a zip file that Airflow's workers can read, change the fields of
``Facts`` to what you look for, and say in the prompt what they mean. PDFs need the package pypdf where Airflow runs.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from typing import Any, Literal

from airflow.sdk import Param, dag, task
from pydantic import BaseModel, Field

PIECE_CHARACTERS = 1_500


class Facts(BaseModel):
    topic: Literal["software", "science", "games", "other"]
    mentions_license: bool
    names: list[str] = Field(max_length=3)


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "archive": Param("/data/documents.zip", type="string", description="Where Airflow's workers find it"),
        "target": Param("document-pieces.parquet", type="string", description="Below the service's data root"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def process_documents():
    @task
    def read_texts(archive: str) -> dict[str, str]:
        from pypdf import PdfReader

        texts = {}
        with zipfile.ZipFile(archive) as documents:
            for name in sorted(documents.namelist()):
                content = documents.read(name)
                if name.endswith(".pdf"):
                    texts[name] = "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)
                else:
                    texts[name] = content.decode()
        return texts

    @task.batch_llm(
        target="{{ params.target }}",
        model="{{ params.model }}",
        prompt="Extract the facts from this piece of a document.\n\n{text}",
        output_type=Facts,
        max_tokens=200,
        overwrite=True,
    )
    def extract(texts: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {"document": name, "piece": number, "text": text[at : at + PIECE_CHARACTERS]}
            for name, text in texts.items()
            for number, at in enumerate(range(0, len(text), PIECE_CHARACTERS))
        ]

    @task
    def merge(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
        import pyarrow.parquet as pq

        documents: dict[str, dict[str, Any]] = defaultdict(lambda: {"pieces": 0, "topics": [], "names": []})
        for file in manifest["files"]:
            for row in pq.read_table(file["uri"]).to_pylist():
                merged = documents[row["document"]]
                merged["pieces"] += 1
                if row["llm_status"] == "success":
                    merged["topics"].append(row["topic"])
                    merged["names"] += [name for name in row["names"] if name not in merged["names"]]
        return dict(documents)

    merge(extract(read_texts("{{ params.archive }}")))


process_documents()
