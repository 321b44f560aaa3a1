"""What every peer embeds with: the same server as ragctl, or ragctl's own hashing embedder."""

from __future__ import annotations

import http.client
import json
from base64 import b64decode
from operator import itemgetter
from urllib.parse import urlsplit

import numpy as np

BATCH = 32


class ServerEmbedder:
    """POST {url}/v1/embeddings over one kept connection, 32 texts a call, the vectors in base64, as with OpenAI's own client."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """The vectors of any number of texts, one call after the other."""
        return [vector for at in range(0, len(texts), BATCH) for vector in self._call(texts[at : at + BATCH])]

    def _call(self, texts: list[str]) -> list[list[float]]:
        body = json.dumps({"model": "words", "input": texts, "encoding_format": "base64"})
        self._connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        rows = json.loads(self._connection.getresponse().read())["data"]
        vectors = [
            np.frombuffer(b64decode(row["embedding"]), "<f4") for row in sorted(rows, key=itemgetter("index"))
        ]
        return [vector.tolist() for vector in vectors]


class HashedEmbedder:
    """ragctl's `hashing`, the vectors as the lists that the peers ask for."""

    def __init__(self, dimension: int) -> None:
        from ragctl.adapters.hashing import HashingEmbedder

        self._embedder = HashingEmbedder(dimension)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """The vectors of any number of texts."""
        vectors: list[list[float]] = self._embedder.embed(texts, "document").vectors.tolist()
        return vectors


def open_embedder(name: str) -> ServerEmbedder | HashedEmbedder:
    """`name`: the URL of a server, or the dimension of hashed vectors."""
    return HashedEmbedder(int(name)) if name.isdigit() else ServerEmbedder(name)
