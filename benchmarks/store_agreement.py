"""Whether the two stores find the same: top 10 of every question on `local` and on `s3vectors`, side by side.

    python -m benchmarks.store_agreement --scifact scifact.zip
    python -m benchmarks.store_agreement                        # the sample corpus and its golden questions

The corpus is ingested twice with the hashing embedder. S3 Vectors is the test server, whose vector search is exact
and whose BM25 is the plain formula without stop words. The embedded store leaves out stop words and keeps lengths of
texts as one byte, so the figures for words say how far two sound readings of BM25 are apart, not what the service
itself would answer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ragctl.config import Experiment
from ragctl.datasets import Question, load_questions
from ragctl.ingest import IngestOptions, Progress, ingest
from ragctl.loading import load
from ragctl.query import QueryEngine, QueryOptions
from ragctl.records import SearchMode
from ragctl.state import open_state
from tests.servers.s3vectors import S3VectorsServer

MODES: Final[tuple[SearchMode, ...]] = ("vector", "text", "hybrid")
DEPTH: Final = 10
SAMPLES: Final = Path(__file__).parent.parent / "configs" / "samples.yaml"
ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "eu-west-1",
}


@dataclass(frozen=True)
class Agreement:
    """How alike the top 10 of two stores are, over all questions of one mode."""

    mode: SearchMode
    questions: int
    same_order: int  # questions with the same keys in the same order
    same_hits: int  # with the same keys in any order
    overlap: float  # mean share of the keys that both have


@contextmanager
def ingested(folder: Path, base: Path) -> Iterator[tuple[Experiment, Experiment]]:
    """The experiment of `base` on both stores, ingested; what it makes is below `folder`."""
    with S3VectorsServer() as server:
        where = {"local": f"path: {folder / 'store'}", "s3vectors": "bucket: agreement"}
        experiments = [
            load(
                base,
                [
                    f"store={{kind: {kind}, index: agreement, {place}}}",
                    f"state={folder / kind}",
                    f"aws.endpoints.s3vectors={server.url}",
                ],
            )
            for kind, place in where.items()
        ]
        for experiment in experiments:
            result = ingest(experiment, open_state(experiment), IngestOptions(), Progress())
            assert not result.failures, result.failures
        local, s3vectors = experiments
        yield local, s3vectors
        assert (server.unexpected, server.broken) == ([], [])


def compare(experiments: Sequence[Experiment], questions: Sequence[Question], mode: SearchMode) -> Agreement:
    """Ask every question of both."""
    with ExitStack() as stack:
        engines = [stack.enter_context(QueryEngine(experiment)) for experiment in experiments]
        pairs = []
        for question in questions:
            options = QueryOptions(mode=mode, top_k=DEPTH, filter=question.filter, retrieve_only=True)
            ones, others = (
                [hit.key for hit in engine.ask(question.question, options).hits] for engine in engines
            )
            pairs.append((ones, others))
    shares = [len(set(a) & set(b)) / max(len(a), len(b), 1) if a or b else 1.0 for a, b in pairs]
    return Agreement(
        mode,
        len(pairs),
        same_order=sum(a == b for a, b in pairs),
        same_hits=sum(set(a) == set(b) for a, b in pairs),
        overlap=sum(shares) / len(shares),
    )


def scifact(archive: Path, folder: Path) -> Path:
    """An experiment file over a BEIR archive."""
    path = folder / "scifact.yaml"
    path.write_text(
        f"""\
name: scifact
sources:
  - kind: local
    name: scifact
    path: {archive.resolve()}
    include: ["**/corpus.jsonl"]
    records: [{{id: _id, text: [title, text]}}]
chunking: {{kind: record, size: 20000}}
evaluation: {{dataset: {{kind: beir, path: {archive.resolve()}, source: scifact}}}}
""",
        encoding="utf-8",
    )
    return path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scifact", type=Path, help="BEIR archive; default: the sample corpus")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = scifact(options.scifact, folder) if options.scifact else SAMPLES
        with ingested(folder, base) as experiments:
            evaluation = experiments[0].evaluation
            assert evaluation is not None
            questions = load_questions(evaluation.dataset)
            print(f"{'mode':<8}{'questions':>10}{'same order':>12}{'same hits':>11}{'overlap@10':>12}")
            for mode in MODES:
                row = compare(experiments, questions, mode)
                print(
                    f"{row.mode:<8}{row.questions:>10}{row.same_order:>12}{row.same_hits:>11}{row.overlap:>12.4f}"
                )


if __name__ == "__main__":
    main()
