"""SIGKILL at every step of the write path, and at hundreds of moments by chance: one further run makes it right.

Each case has its own experiment and changing corpus; after a kill and one undisturbed run, index and ledger must hold
what an undisturbed run over the same corpus leaves in a new index: the same keys, texts, metadata and vectors, no loose
key, and nothing for `verify --full` to complain about. All work is shared between two processes that fork.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import pytest
from moto.server import ThreadedMotoServer

from tests.crashes import (
    SHARED,
    Bench,
    Corpus,
    Done,
    References,
    Zygote,
    aws_at,
    differences,
    history,
    numbered,
    records,
    store_at,
    text,
)
from tests.servers.clients import connect
from tests.servers.process import ServerProcess

PROCESSES = 2
RANDOM_KILLS = 320
ROUNDS = 8  # of random kills: each has its seed, and a fourth of them goes to each pair of store and state
KILLED = -9

Store = Literal["local", "s3vectors"]
State = Literal["local", "s3"]
PAIRS: tuple[tuple[Store, State], ...] = (
    ("local", "local"),
    ("local", "s3"),
    ("s3vectors", "local"),
    ("s3vectors", "s3"),
)


@dataclass
class Outcome:
    """What came of a series of kills."""

    kills: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


class Farm:
    """Servers, processes that fork, and what undisturbed runs leave behind."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._vectors = stack.enter_context(ServerProcess("tests.servers.s3vectors")).url
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        stack.callback(moto.stop)
        host, port = moto.get_host_and_port()
        self._s3 = f"http://{host}:{port}"
        with connect("s3", self._s3) as client:
            client.create_bucket(
                Bucket="state", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
            )
        self.references = References(folder / "references")
        self._zygotes: SimpleQueue[Zygote] = SimpleQueue()
        for number in range(PROCESSES):
            zygote = stack.enter_context(Zygote(folder / f"zygote-{number}"))
            self._warm(zygote, folder / f"warm-{number}")
            self._zygotes.put(zygote)
        self._pool = stack.enter_context(ThreadPoolExecutor(PROCESSES))

    def bench(self, name: str, store: Store, state: State) -> Bench:
        """An experiment with an empty index."""
        vectors = self._vectors if store == "s3vectors" else None
        sections: dict[str, Any] = {
            "store": store_at(vectors, name),
            "aws": aws_at(self._vectors, self._s3),
            "state": f"s3://state/{name}" if state == "s3" else "state",
        }
        return Bench(self._folder / name, sections)

    def submit(self, series: Callable[[Farm, Zygote], Outcome]) -> Future[Outcome]:
        """Have a series done by one of the processes."""

        def work() -> Outcome:
            zygote = self._zygotes.get()
            try:
                return series(self, zygote)
            finally:
                self._zygotes.put(zygote)

        return self._pool.submit(work)

    def _warm(self, zygote: Zygote, folder: Path) -> None:
        for store, state in PAIRS:
            bench = self.bench(f"{folder.name}-{store}-{state}", store, state)
            bench.write(A)
            zygote.warm(bench)


def _corpora() -> tuple[Corpus, Corpus, Corpus]:
    """Three that differ in all ways: files and records that are new, gone, edited, and turned around."""
    rng = random.Random(5)
    lines = records(rng, list(range(7))).splitlines()
    a = {f"d{i}.md": text(rng) for i in range(7)} | {"r.jsonl": "\n".join(lines[:5])}
    a["d2.md"] = f"{a['d2.md']}\n\n{SHARED}"
    b = {name: words for name, words in a.items() if name not in ("d0.md", "d1.md")}
    b["d2.md"] = "\n\n".join(["A new beginning.", *reversed(a["d2.md"].split("\n\n"))])
    b["d3.md"] = text(rng)
    b["d8.md"] = f"{text(rng)}\n\n{SHARED}"
    b["d9.md"] = a["d0.md"]  # renamed
    b["r.jsonl"] = "\n".join([lines[0], lines[2].replace('"text": "', '"text": "Edited. '), *lines[3:7]])
    c = {name: words for name, words in b.items() if name not in ("d4.md", "d8.md")}
    c["d2.md"] = f"Edited again. {b['d2.md']}"
    c["d3.md"] = a["d3.md"]
    c["r.jsonl"] = "\n".join(lines[1:4])
    return a, b, c


A, B, C = _corpora()


class Series:
    """Kills on one experiment, one after the other; what is wrong after any of them is collected."""

    def __init__(self, farm: Farm, zygote: Zygote, bench: Bench, **hooks: Any) -> None:
        self._farm, self._zygote, self.bench, self._hooks = farm, zygote, bench, hooks
        self.outcome = Outcome()
        self.last_s = 0.0

    def ingest(self, corpus: Corpus, kill: dict[str, Any] | None = None) -> Done:
        """Run over a corpus, to the end or to the kill."""
        self.bench.write(corpus)
        done = self._zygote.ragctl("ingest", self.bench.config, kill=kill, **self._hooks)
        self.outcome.runs += 1
        self.last_s = done.seconds
        self.outcome.kills += done.status == KILLED
        return done

    def converge(self, corpus: Corpus, after: object) -> None:
        """One undisturbed run over a corpus, after which all must be as it should be."""
        done = self.ingest(corpus)
        if done.status != 0:
            tail = self._zygote.log.read_text()[-1_500:]
            self.outcome.problems.append(f"after {after}: the next run ended with {done.status}: {tail}")
            return
        reference = self._farm.references.of(corpus, self._zygote)
        found = differences(self._zygote.dump(self.bench.config), reference)
        if found:
            self.outcome.problems.append(f"after {after}: {found}")


def kill_first_runs(store: Store, state: State) -> Callable[[Farm, Zygote], Outcome]:
    """Kill a first ingest at each of its steps; every time with a new index."""

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        def new(number: int) -> Series:
            bench = farm.bench(f"first-{store}-{state}-{number}", store, state)
            return Series(farm, zygote, bench, embeds_in_workers=number % 2 == 0)

        whole = Outcome()
        steps = numbered(new(0).ingest(A).steps)
        for number, (step, nth) in enumerate(steps, start=1):
            one = new(2 * number)
            killed = one.ingest(A, {"step": step, "nth": nth})
            if killed.status != KILLED:
                one.outcome.problems.append(f"{step} {nth}: not killed but ended with {killed.status}")
            one.converge((A, B, C)[number % 3], f"a kill after {step} {nth}")
            whole.kills += one.outcome.kills
            whole.runs += one.outcome.runs
            whole.problems += one.outcome.problems
        return whole

    return series


def kill_changes(store: Store, state: State) -> Callable[[Farm, Zygote], Outcome]:
    """Kill the way from A to B, and back, at each step. Then the source is, in turn, as it was meant to be, as it was
    before, and changed again.
    """

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        whole = Outcome()
        for number, (old, new, hooks) in enumerate(
            [(A, B, {"publish_every_s": 0.0}), (B, A, {"publish_every_s": 1e9, "embeds_in_workers": False})]
        ):
            bench = farm.bench(f"change-{store}-{state}-{number}", store, state)
            one = Series(farm, zygote, bench, **hooks)
            one.ingest(old)
            steps = numbered(one.ingest(new).steps)
            one.converge(old, "nothing")
            for place, (step, nth) in enumerate(steps, start=number):
                then = (new, old, C)[place % 3]
                killed = one.ingest(new, {"step": step, "nth": nth})
                if killed.status != KILLED:
                    one.outcome.problems.append(f"{step} {nth}: ended with {killed.status}")
                one.converge(then, f"a kill after {step} {nth}, then {'ABC'[(A, B, C).index(then)]}")
                if then != old:
                    one.ingest(old)
            whole.kills += one.outcome.kills
            whole.runs += one.outcome.runs
            whole.problems += one.outcome.problems
        return whole

    return series


def kill_at_random(seed: int, store: Store, state: State, kills: int) -> Callable[[Farm, Zygote], Outcome]:
    """Kill at moments by chance, up to four times in a row, while the corpus goes on changing."""

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        rng = random.Random(seed)
        one = Series(
            farm,
            zygote,
            farm.bench(f"random-{store}-{state}-{seed}", store, state),
            embeds_in_workers=rng.random() < 0.5,
            publish_every_s=rng.choice([0.0, 1e9]),
            settle_documents=rng.choice([1, 3, 1_000]),
        )
        corpora = history(seed, 100 * kills)
        usual_s = 0.3
        while one.outcome.kills < kills:
            for _ in range(rng.randint(1, 4)):
                one.ingest(next(corpora), {"after_s": rng.uniform(0.02, usual_s)})
            start = one.outcome.runs
            corpus = next(corpora)
            one.converge(corpus, f"{one.outcome.kills} kills by chance (run {start})")
            if one.outcome.problems:
                break
            usual_s = 0.9 * usual_s + 0.1 * 1.2 * one.last_s
        return one.outcome

    return series


SERIES: dict[str, Callable[[Farm, Zygote], Outcome]] = {}
for _store, _state in PAIRS:
    SERIES[f"change-{_store}-{_state}"] = kill_changes(_store, _state)
    SERIES[f"first-{_store}-{_state}"] = kill_first_runs(_store, _state)
for _seed in range(ROUNDS):
    SERIES[f"random-{_seed}"] = kill_at_random(_seed, *PAIRS[_seed % len(PAIRS)], RANDOM_KILLS // ROUNDS)


def named(kind: str) -> list[str]:
    return [name for name in SERIES if name.startswith(kind)]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """The series of the tests that run, begun at once and finished as the processes get to them."""
    here = [item for item in request.session.items if item.path == request.path]
    wanted = [str(item.callspec.params["series"]) for item in here if isinstance(item, pytest.Function)]
    with ExitStack() as stack:
        farm = Farm(tmp_path_factory.mktemp("crashes"), stack)
        yield {name: farm.submit(SERIES[name]) for name in wanted}


@pytest.mark.parametrize("series", named("first"))
def test_a_first_ingest_killed_at_any_step(outcomes: dict[str, Future[Outcome]], series: str) -> None:
    """Nothing of the new index is lost, double or left over."""
    outcome = outcomes[series].result()
    assert outcome.problems == []
    assert outcome.kills >= 20


@pytest.mark.parametrize("series", named("change"))
def test_a_change_killed_at_any_step(outcomes: dict[str, Future[Outcome]], series: str) -> None:
    """Edits, deletes and records converge, also when the source changes again, or back, before the next run."""
    outcome = outcomes[series].result()
    assert outcome.problems == []
    assert outcome.kills >= 40


@pytest.mark.parametrize("series", named("random"))
def test_kills_at_random(outcomes: dict[str, Future[Outcome]], series: str) -> None:
    """Hundreds of SIGKILLs at any moment; the number of the series is its seed."""
    outcome = outcomes[series].result()
    assert outcome.problems == []
    assert outcome.kills >= RANDOM_KILLS // ROUNDS
