"""Experiments on either store for tests of the whole: a folder, or the S3 Vectors test server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ragctl.adapters import open_store
from ragctl.adapters.base import VectorStore
from ragctl.loading import load
from ragctl.sparse import dense
from tests import cli
from tests.servers.http import Refusal, Reply, Request
from tests.servers.openai_server import OpenAIServer
from tests.servers.s3vectors import S3VectorsServer

StoreKind = Literal["local", "s3vectors"]
STORES: tuple[StoreKind, ...] = ("local", "s3vectors")


class PickyServer(OpenAIServer):
    """An embedding server that refuses every batch with a text that holds `marker`, by this status."""

    marker: str | None = None
    status: int = 413

    def _embeddings(self, request: Request) -> Reply:
        if self.marker and any(self.marker in text for text in request.document["input"]):
            raise Refusal(self.status, "refused", "Refused as the test has asked for.")
        return super()._embeddings(request)


@dataclass
class Place:
    """A folder with documents and an experiment, and commands on it."""

    folder: Path
    server: S3VectorsServer | None = None
    sections: dict[str, Any] = field(default_factory=dict)

    def write(self, texts: Mapping[str, str]) -> None:
        """Files of the source."""
        cli.write_docs(self.folder, texts)

    def configure(self, **sections: Any) -> Path:
        """Write the experiment file."""
        return cli.experiment(self.folder, **(self._defaults() | self.sections | sections))

    def ragctl(self, command: str, *arguments: object) -> cli.Ended:
        """Run a command on the experiment, in this process."""
        return cli.in_process(command, self.folder / "experiment.yaml", *arguments)

    @contextmanager
    def store(self) -> Iterator[VectorStore]:
        """The experiment's store, opened in this process."""
        store = open_store(load(self.folder / "experiment.yaml"))
        try:
            yield store
        finally:
            store.close()

    def held(self) -> dict[str, tuple[dict[str, Any], bytes]]:
        """Everything in the index: metadata and vector by key."""
        with self.store() as store:
            keys, size = list(store.keys()), store.limits.get_keys
            return {
                key: (dict(record.metadata), dense(record.vector).tobytes())
                for first in range(0, len(keys), size)
                for key, record in store.get(keys[first : first + size], vectors=True).items()
            }

    def documents(self) -> list[str]:
        """The documents that have a chunk in the index, sorted."""
        return sorted({str(metadata["document"]) for metadata, _ in self.held().values()})

    def undisturbed(self) -> dict[str, tuple[dict[str, Any], bytes]]:
        """What one run over the same documents puts into an index where nothing goes wrong; into one of its own."""
        store = self._defaults().get("store", {"kind": "local", "path": "store"})
        self.configure(store=store | {"index": "calm"})
        ended = self.ragctl("ingest")
        assert ended.status == 0, ended.err
        held = self.held()
        self.configure()
        return held

    def _defaults(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"ingest": {"workers": 1}}
        if self.server is None:
            return plain
        return plain | {
            "store": {"kind": "s3vectors", "bucket": "library", "index": "test"},
            "aws": {"region": "eu-west-1", "endpoints": {"s3vectors": self.server.url}},
        }


def embedding_at(url: str, **settings: Any) -> dict[str, Any]:
    """The embedding section for the OpenAI test server."""
    return {"kind": "openai", "base_url": f"{url}/v1", "model": "words", **settings}
