"""LlamaIndex: its ingestion pipeline into S3 Vectors or LanceDB.

Prints how many chunks went in and the seconds it took, imports aside; and those of a text index, where it is asked to
make one, as the store does itself before its first search by words.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from embedders import open_embedder
from llama_index.core import Document
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode


class Embedder(BaseEmbedding):  # type: ignore[misc]  # the package is in another environment
    """The shared embedder behind LlamaIndex's interface."""

    _embedder: Any = PrivateAttr()

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(model_name="shared", embed_batch_size=batch)
        self._embedder = open_embedder(name)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.embed(texts)
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def nodes(path: Path) -> list[TextNode]:
    """One of each record of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [TextNode(text=row["text"], id_=row["id"], metadata={"source": row["id"]}) for row in rows]


def documents(folder: Path) -> list[Document]:
    """One of each file."""
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    return [
        Document(text=one.read_text(encoding="utf-8", errors="replace"), metadata={"source": str(one)})
        for one in files
    ]


def main() -> None:
    """Do one kind of work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["s3vectors", "lancedb"])
    parser.add_argument("input", type=Path)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--dimension", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--chunk", type=int, help="characters")
    parser.add_argument("--name", default="llama-index")
    parser.add_argument("--text-index", action="store_true")
    options = parser.parse_args()
    if options.work == "s3vectors":
        from llama_index.vector_stores.s3 import S3VectorStore

        store: Any = S3VectorStore.create_index_from_bucket("benchmark", options.name, options.dimension)
    else:
        from llama_index.vector_stores.lancedb import LanceDBVectorStore

        store = LanceDBVectorStore(uri=f"{options.name}.lancedb", mode="overwrite")
    embedder = Embedder(options.embedder, options.batch)
    start = time.perf_counter()
    if options.chunk:
        splitter = SentenceSplitter(chunk_size=options.chunk, chunk_overlap=0, tokenizer=list)
        # The path of a file counts against the chunk size, which would make other chunks than everybody else's.
        splitter.include_metadata = False
        pipeline = IngestionPipeline(
            transformations=[splitter, embedder], vector_store=store, disable_cache=True
        )
        done = pipeline.run(documents=documents(options.input))
    else:
        pipeline = IngestionPipeline(transformations=[embedder], vector_store=store, disable_cache=True)
        done = pipeline.run(nodes=nodes(options.input))
    seconds = time.perf_counter() - start
    if options.work != "s3vectors" and (rows := store.table.count_rows()) != len(done):
        raise SystemExit(f"the table holds {rows} rows of {len(done)}")
    if options.text_index:
        store.table.create_fts_index(store.text_key, replace=True)
    text_index = time.perf_counter() - start - seconds
    print(f"\n{json.dumps({'written': len(done), 'seconds': seconds, 'text_index': text_index})}")


if __name__ == "__main__":
    main()
