"""SIGKILL at every step of the write path, and at hundreds of moments by chance: one further run makes it right.

Each case has its own experiment and changing corpus; after a kill and one undisturbed run, index and ledger must hold
what an undisturbed run over the same corpus leaves in a new index, which `verify --full` finds right: the same keys,
texts, metadata and vectors, the same rows in the ledger, and no loose key. All work is shared between two processes that fork.

A failure says what was killed where, and then run over what. To see it alone:

    pytest tests/test_crash.py -k change-local-s3
    CRASH_STEP=store.put:2 pytest tests/test_crash.py -k change-local-s3     (a step that it named)
    CRASH_SEED=3 pytest tests/test_crash.py -k random                        (other moments, other ways)

`crash_zygote.py` says how to kill one run of an experiment by hand.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
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
    Step,
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

log = logging.getLogger("tests.crash")

PROCESSES = 2
SEED = int(os.environ.get("CRASH_SEED", "0"))
CONVERGED = 304  # how often a run that was killed by chance is followed by one that is not, and looked at
ROUNDS = 8  # of random kills: each has its seed, and a fourth of them goes to each pair of store and state
HISTORY = history(5, 24)
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
    steps: list[Step] = field(default_factory=list)  # at which a run was to be killed
    problems: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take in what came of more kills."""
        self.kills += other.kills
        self.runs += other.runs
        self.steps += other.steps
        self.problems += other.problems


class Farm:
    """Servers, processes that fork, and what undisturbed runs leave behind."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self.server = stack.enter_context(ServerProcess("tests.servers.s3vectors"))
        self._vectors = self.server.url
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
CORPORA = {"A": A, "B": B, "C": C}


class Series:
    """Kills on one experiment, one after the other; what is wrong after any of them is collected."""

    def __init__(self, farm: Farm, zygote: Zygote, bench: Bench, **hooks: Any) -> None:
        self._farm, self._zygote, self._bench, self._hooks = farm, zygote, bench, hooks
        self.outcome = Outcome()
        self.last_s = 0.0

    def ingest(self, corpus: Corpus, **job: Any) -> Done:
        """Run over a corpus, to the end or to the kill."""
        self._bench.write(corpus)
        done = self._zygote.ingest(self._bench, **self._hooks, **job)
        self.outcome.runs += 1
        self.outcome.kills += done.status == KILLED
        return done

    def kill_at(self, step: Step, corpus: Corpus, **job: Any) -> None:
        """Run over a corpus and end by SIGKILL at a step."""
        done = self.ingest(corpus, kill={"step": step[0], "nth": step[1]}, **job)
        self.outcome.steps.append(step)
        if done.status not in (KILLED, 0):  # 0: batches fell otherwise this time, so that it has a step less
            self.outcome.problems.append(f"{step}: not killed but ended with {done.status}")

    def converge(self, corpus: Corpus, after: str, **job: Any) -> None:
        """One undisturbed run over a corpus, after which all must be as it should be."""
        self._bench.write(corpus)
        done, held = self._zygote.ingest_and_dump(self._bench, **self._hooks, **job)
        self.outcome.runs += 1
        if done.status != 0:
            tail = self._zygote.log.read_text()[-3_000:]
            self.outcome.problems.append(f"{after}: the next run ended with {done.status}: {tail}")
            return
        self.last_s = held["seconds"]
        if found := differences(held, self._farm.references.of(corpus, self._zygote)):
            self.outcome.problems.append(f"{after}: {found}")


def kill_first_runs(store: Store, state: State) -> Callable[[Farm, Zygote], Outcome]:
    """Kill a first ingest at each of its steps; every time with a new index."""

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        def new(number: int) -> Series:
            return Series(farm, zygote, farm.bench(f"first-{store}-{state}-{number}", store, state))

        whole = Outcome()
        for number, step in enumerate(numbered(new(0).ingest(A).steps), start=1):
            one = new(number)
            one.kill_at(step, A)
            one.converge((A, B, C)[number % 3], f"a kill at {step}, then {'ABC'[number % 3]}")
            whole.add(one.outcome)
        return whole

    return series


@dataclass
class Way:
    """From one corpus to another, with the steps at which it is yet to be killed."""

    new: Corpus
    hooks: dict[str, Any]
    steps: list[Step] = field(default_factory=list)


def kill_changes(store: Store, state: State) -> Callable[[Farm, Zygote], Outcome]:
    """Kill the way from A to B, and that from B to A, at each step. Then the source is, in turn, as it was meant to
    be, as it was before, and changed again.
    """

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        ways = {
            "A": Way(B, {"publish_every_s": 0.0}),
            "B": Way(A, {"publish_every_s": 1e9, "embeds_in_workers": False}),
        }
        one = Series(farm, zygote, farm.bench(f"change-{store}-{state}", store, state))
        one.ingest(A)
        for way in ways.values():
            way.steps = numbered(one.ingest(way.new, **way.hooks).steps)
        here, other = "A", "B"
        while any(way.steps for way in ways.values()):
            way = ways[here]
            if not way.steps:
                one.ingest(way.new)
                here, other = other, here
                continue
            step = way.steps.pop()
            then = (other, here, "C")[len(way.steps) % 3]
            one.kill_at(step, way.new, **way.hooks)
            one.converge(CORPORA[then], f"{here} to {other}, a kill at {step}, then {then}", **way.hooks)
            if then == "C":
                one.ingest(way.new)
            if then != here:
                here, other = other, here
        return one.outcome

    return series


def kill_at_random(seed: int, store: Store, state: State) -> Callable[[Farm, Zygote], Outcome]:
    """Kill at moments by chance, at times two or three runs in a row, while the corpus goes on changing: forth and back
    in a history that all share, in which it also stays for a while as it is.
    """

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        rng = random.Random(seed)
        one = Series(
            farm,
            zygote,
            farm.bench(f"random-{seed}", store, state),
            embeds_in_workers=rng.random() < 0.5,
            publish_every_s=rng.choice([0.0, 1e9]),
            settle_documents=rng.choice([1, 3, 1_000]),
        )
        place, usual_s = rng.randrange(len(HISTORY)), 0.2
        for number in range(CONVERGED // ROUNDS):
            for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
                while True:
                    place = (place + rng.choice([-3, -2, -1, 0, 0, 1, 2, 3])) % len(HISTORY)
                    done = one.ingest(HISTORY[place], kill={"after_s": rng.uniform(0.01, usual_s)})
                    if done.status == KILLED:
                        break
                    if done.status != 0:
                        one.outcome.problems.append(
                            f"a run that was too quick to kill ended with {done.status}"
                        )
            place = (place + rng.choice([0, 0, 0, 1, -1, 2])) % len(HISTORY)
            one.converge(HISTORY[place], f"seed {seed}, convergence {number}")
            usual_s = 0.9 * usual_s + 0.1 * 0.9 * one.last_s
        return one.outcome

    return series


UPKEEP = {"repair": ("verify", "--full", "--repair"), "rebuild": ("ledger", "rebuild")}


def kill_upkeep(name: str, store: Store) -> Callable[[Farm, Zygote], Outcome]:
    """Kill, at each step, the repair of an index whose ledger is of an earlier day, or the making of a lost one. Then
    the same command and an ingest, undisturbed, must lead to where all is as it should be.
    """

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        bench = farm.bench(f"{name}-{store}", store, "local")
        state, earlier = bench.folder / "state", bench.folder / "earlier"
        one = Series(farm, zygote, bench)
        one.ingest(A)
        shutil.copytree(state, earlier)
        one.ingest(B)

        def upkeep(**job: Any) -> Done:
            one.outcome.runs += 1
            return zygote.run(*UPKEEP[name], str(bench.config), **job)

        def damage() -> None:
            shutil.rmtree(state)
            if name == "repair":
                shutil.copytree(earlier, state)

        damage()
        whole = upkeep()
        assert whole.status == 0, zygote.log.read_text()[-3_000:]
        for step in numbered(whole.steps):
            damage()
            done = upkeep(kill={"step": step[0], "nth": step[1]})
            one.outcome.kills += done.status == KILLED
            one.outcome.steps.append(step)
            again = upkeep()
            if again.status != 0:
                one.outcome.problems.append(f"{name} after a kill at {step} ended with {again.status}")
            one.converge(B, f"{name}, a kill at {step}")
        return one.outcome

    return series


def kill_renewal(store: Store, state: State) -> Callable[[Farm, Zygote], Outcome]:
    """Kill, at each step, the making anew of a ledger that is whole: an ingest alone must find it, or the new one."""

    def series(farm: Farm, zygote: Zygote) -> Outcome:
        bench = farm.bench(f"renew-{store}-{state}", store, state)
        one = Series(farm, zygote, bench)
        one.ingest(A)
        whole = zygote.run(*UPKEEP["rebuild"], str(bench.config))
        assert whole.status == 0, zygote.log.read_text()[-3_000:]
        for number, step in enumerate(numbered(whole.steps)):
            kill = {"step": step[0], "nth": step[1]}
            done = zygote.run(*UPKEEP["rebuild"], str(bench.config), kill=kill)
            one.outcome.kills += done.status == KILLED
            one.outcome.runs += 1
            one.outcome.steps.append(step)
            one.converge((A, B)[number % 2], f"a rebuild, a kill at {step}")
        return one.outcome

    return series


SERIES: dict[str, Callable[[Farm, Zygote], Outcome]] = {}
for _store, _state in PAIRS:
    SERIES[f"change-{_store}-{_state}"] = kill_changes(_store, _state)
    SERIES[f"first-{_store}-{_state}"] = kill_first_runs(_store, _state)
    SERIES[f"renew-{_store}-{_state}"] = kill_renewal(_store, _state)
for _upkeep in UPKEEP:
    for _store in ("local", "s3vectors"):
        SERIES[f"{_upkeep}-{_store}"] = kill_upkeep(_upkeep, _store)
for _round in range(ROUNDS):
    _seed = SEED + _round
    SERIES[f"random-{_seed}"] = kill_at_random(_seed, *PAIRS[_round % len(PAIRS)])


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
        report = farm.server.report()
        assert (report["unexpected"], report["broken"]) == ([], [])


def expected_steps(series: str) -> set[str]:
    """The kinds of step that every series meets: a hook that has come loose would leave one out."""
    names = {"store.put", "ledger.prepare", "ledger.commit"}
    names |= {"state.put", "state.delete"} if series.endswith("s3") else {"state.replace"}
    return names | ({"store.create"} if series.startswith("first") else {"store.delete"})


@pytest.mark.parametrize("series", [*named("first"), *named("change")])
def test_killed_at_any_step(outcomes: dict[str, Future[Outcome]], series: str) -> None:
    """A first ingest and one of edits, deletes and records converge, also when the source changes again, or back,
    before the next run.
    """
    outcome = outcomes[series].result()
    log.info("%s: %d kills, %d runs", series, outcome.kills, outcome.runs)
    assert outcome.problems == []
    assert outcome.kills >= 0.9 * len(outcome.steps) > 0
    if "CRASH_STEP" not in os.environ:
        assert expected_steps(series) <= {name for name, _ in outcome.steps}


@pytest.mark.parametrize("series", [*named("repair"), *named("rebuild"), *named("renew")])
def test_killed_while_putting_right(outcomes: dict[str, Future[Outcome]], series: str) -> None:
    """A repair, or the rebuilding of a ledger, that is killed at any step leaves what the next one puts right."""
    outcome = outcomes[series].result()
    log.info("%s: %d kills, %d runs", series, outcome.kills, outcome.runs)
    assert outcome.problems == []
    assert outcome.kills >= 0.9 * len(outcome.steps) > 0


@pytest.mark.parametrize("series", named("random"))
def test_killed_at_random(outcomes: dict[str, Future[Outcome]], series: str) -> None:
    """Hundreds of SIGKILLs at any moment; the number of the series is its seed."""
    outcome = outcomes[series].result()
    log.info("%s: %d kills, %d runs", series, outcome.kills, outcome.runs)
    assert outcome.problems == []
    assert outcome.kills >= CONVERGED // ROUNDS
