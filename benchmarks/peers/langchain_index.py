"""LangChain: `index()` into S3 Vectors or LanceDB, or LanceDB's own bulk load.

Prints how many chunks went in and the seconds it took, imports and the reading of the input aside; and those of a
text index, where it is asked to make one, as the store does itself before its first search by words.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from embedders import open_embedder
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings


class Embedder(Embeddings):
    """The shared embedder behind LangChain's interface."""

    def __init__(self, name: str) -> None:
        self._embedder = open_embedder(name)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.embed(texts)
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def documents(path: Path) -> list[Document]:
    """One of each record of a .jsonl file, or of each file in a folder."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [Document(row["text"], metadata={"source": row["id"]}) for row in rows]
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return [
        Document(one.read_text(encoding="utf-8", errors="replace"), metadata={"source": str(one)})
        for one in files
    ]


def main() -> None:
    """Do one kind of work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["s3vectors", "lancedb", "lancedb-bulk"])
    parser.add_argument("input", type=Path)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--batch", type=int, default=100)  # LangChain's own
    parser.add_argument("--chunk", type=int, help="characters; default: do not split")
    parser.add_argument("--name", default="langchain")
    parser.add_argument("--text-index", action="store_true")
    options = parser.parse_args()
    if options.work == "lancedb-bulk":
        from langchain_community.vectorstores import LanceDB
    else:
        from langchain_classic.indexes import SQLRecordManager
        from langchain_core.indexing import index
    embedder = Embedder(options.embedder)
    if options.work == "s3vectors":
        from langchain_aws.vectorstores import AmazonS3Vectors

        store: Any = AmazonS3Vectors(
            vector_bucket_name="benchmark",
            index_name=options.name,
            embedding=embedder,
            region_name="eu-west-1",
        )
    else:
        from langchain_community.vectorstores import LanceDB

        # As it comes, it overwrites the table with each batch and holds the last one at the end.
        store = LanceDB(uri=f"{options.name}.lancedb", embedding=embedder, table_name="chunks", mode="append")
    start = time.perf_counter()
    texts = documents(options.input)
    read = time.perf_counter() - start
    if options.chunk:
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        texts = RecursiveCharacterTextSplitter(chunk_size=options.chunk, chunk_overlap=0).split_documents(
            texts
        )
    if options.work == "lancedb-bulk":
        store.add_documents(texts)
        written = len(texts)
    else:
        records = SQLRecordManager(options.name, db_url=f"sqlite:///{options.name}.sqlite")
        records.create_schema()
        result = index(
            texts, records, store, batch_size=options.batch, cleanup="full", source_id_key="source"
        )
        written = result["num_added"]
    seconds = time.perf_counter() - start
    if written and options.work != "s3vectors" and (rows := store.get_table().count_rows()) != written:
        raise SystemExit(f"the table holds {rows} rows of {written}")
    if options.text_index:
        store.get_table().create_fts_index("text", replace=True)
    text_index = time.perf_counter() - start - seconds
    said = {
        "documents": len(texts),
        "written": written,
        "seconds": seconds,
        "reading": read,
        "text_index": text_index,
    }
    print(f"\n{json.dumps(said)}")


if __name__ == "__main__":
    main()
