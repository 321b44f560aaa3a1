"""A process that has imported what ragctl needs and forks a child for each command, so that a kill costs a tenth of
a second. The children carry hooks that the program knows nothing of: they count the steps of the write path, end the
process by SIGKILL at one of them, and make batches so small that a small corpus has many steps. A step is the end of a
call that changes something outside the process: of the store, the state location, the ledger.

It reads a job a line from stdin and answers each with a line on stdout:

    {"arguments": [...], "log": FILE, "kill": null | {"step": NAME, "nth": N} | {"after_s": S}, ...}
    {"status": exit status or minus the signal, "steps": [...]}

With "dump": CONFIG the child, once the command has ended with 0, writes to the file "out" what that experiment's index
and ledger hold. The job {"warm": CONFIG} imports what an experiment needs, in the parent.

By hand, with the log on the screen:

    echo '{"arguments": ["ingest", "CONFIG"], "log": "/dev/stderr", "kill": {"step": "store.put", "nth": 2}}' |
        python -m tests.crash_zygote

LanceDB is imported and not used before the fork: its own hooks make that safe, and only that.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import wraps
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd  # type: ignore[import-untyped]  # noqa: F401 - LanceDB imports it with the first put
import pyarrow.dataset  # noqa: F401 - as well
import typer

from ragctl import (
    chunking,  # noqa: F401
    cli,
    embedding,  # noqa: F401
    ingest,
    manifest,
    parsing,  # noqa: F401
    remote_ledger,
    report,
    settling,
    state,
    verify,
    workers,
)
from ragctl.adapters import aws, hashing, local, open_store, s3vectors
from ragctl.adapters.base import StoreLimits
from ragctl.adapters.lance import import_lancedb
from ragctl.commands import ingest as ingest_command  # noqa: F401
from ragctl.loading import load
from ragctl.sparse import dense
from ragctl.spending import IngestBill
from ragctl.worker import Task, Workshop, _serve_batch

Job = dict[str, Any]

DUMPED_KEYS = 100  # at once, which every store bears


# --- the parent ------------------------------------------------------------------------------------------


def main() -> None:
    """Serve jobs until stdin ends."""
    warnings.filterwarnings("ignore", "lancedb fork support")
    import_lancedb()
    cli.app = typer.main.get_command(cli.app)  # type: ignore[assignment]  # what each call of the app would make
    for line in sys.stdin:
        job = json.loads(line)
        done = _warm(Path(job["warm"])) if "warm" in job else _do(job)
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


def _warm(config: Path) -> Job:
    """Import and read what an ingest of this experiment does. No local store is opened: its threads do not fork."""
    experiment = load(config)
    store = open_store(experiment)
    if experiment.store.kind == "s3vectors":
        store.describe()
    IngestBill.of(experiment, state.open_state(experiment))
    for client in aws._clients.values():
        client.close()  # its connections, of which each child needs its own
    report.versions()
    shop = Workshop(experiment)
    for file in ingest.list_sources(experiment):
        shop.embed(list(shop.work(Task(file))))
    gc.collect()
    gc.freeze()  # a collection in a child would have all of it copied
    return {"status": 0, "steps": []}


def _do(job: Job) -> Job:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(job, writer)
    os.close(writer)
    after_s = (job.get("kill") or {}).get("after_s")
    ended = os.pidfd_open(child)
    if not select.select([ended], [], [], after_s if after_s is not None else 120)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        steps = pipe.read().splitlines()
    return {"status": os.waitstatus_to_exitcode(status), "steps": steps}


# --- a child ---------------------------------------------------------------------------------------------


def _be_child(job: Job, writer: int) -> NoReturn:
    """Never returns, and leaves without the parent's clean-ups."""
    start = time.monotonic()
    status = 70
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _make_small()
        _install(_Steps(job, writer), job)
        status = _ragctl(job["arguments"])
        if status == 0 and "dump" in job:
            _dump(job, time.monotonic() - start)
    except BaseException:  # noqa: BLE001  whatever it is, the log has it and the status says it
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _ragctl(arguments: list[str]) -> int:
    sys.argv = ["ragctl", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def _dump(job: Job, seconds: float) -> None:
    """Everything in index and ledger, with the seconds that the command took; and, where that is asked for, what
    `verify --full` says.
    """
    experiment = load(Path(job["dump"]))
    place = state.open_state(experiment)
    store = open_store(experiment)
    keys = list(store.keys())
    records = {}
    for first in range(0, len(keys), DUMPED_KEYS):
        for key, record in store.get(keys[first : first + DUMPED_KEYS], vectors=True).items():
            vector = blake2b(dense(record.vector).tobytes(), digest_size=8).hexdigest()
            records[key] = [dict(record.metadata), vector]
    store.close()
    with ingest.reading_ledger(place, experiment.store.index) as ledger:
        rows = {
            "files": [asdict(replace(row, updated="")) for row in ledger.files()],
            "documents": [asdict(replace(row, updated="")) for row in ledger.documents()],
            "failures": [asdict(failure) for failure in ledger.failures()],
            "loose": ledger.loose(-1),
        }
    drift = verify.verify(experiment, place, sample=None).to_json() if job.get("verify") else None
    document = {
        "doubles": len(keys) - len(set(keys)),
        "records": records,
        "ledger": rows,
        "journal": place.names(f"{state.ledger_name(experiment.store.index)}.journal/"),
        "drift": drift,
        "seconds": seconds,
    }
    Path(job["out"]).write_text(json.dumps(document))


# --- hooks -----------------------------------------------------------------------------------------------


class _Steps:
    """Tells the parent of each step, and ends the process at the one where it is to end."""

    def __init__(self, job: Job, writer: int) -> None:
        kill = job.get("kill") or {}
        self._kill = (kill["step"], kill["nth"]) if "step" in kill else None
        self._writer = writer
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            os.write(self._writer, f"{name}\n".encode())
            if self._kill == (name, self._counts[name]):
                os.kill(os.getpid(), signal.SIGKILL)


def _make_small() -> None:
    """Limits that a corpus of forty chunks meets a few times."""
    limits = {"put_records": 13, "delete_keys": 9, "get_keys": 11}
    for store in (local.LocalStore, s3vectors.S3VectorsStore):
        _patch_limits(store, limits)
    s3vectors.LIST_PAGE = 11  # type: ignore[misc]  # a constant for everybody else
    hashing.HashingEmbedder.max_batch = 5


def _patch_limits(store: Any, limits: dict[str, int]) -> None:
    if isinstance(getattr(store, "limits", None), StoreLimits):
        store.limits = replace(store.limits, **limits)
        return
    make = store.__init__

    @wraps(make)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self.limits = replace(self.limits, **limits)

    store.__init__ = init


def _install(step: _Steps, job: Job) -> None:
    settling.SETTLE_DOCUMENTS = job.get("settle_documents", 3)
    remote_ledger.PUBLISH_EVERY_S = job.get("publish_every_s", 0.0)
    remote_ledger.SHARE = 1e9  # how long a publication takes does not count
    hashing.HashingEmbedder.cpu_bound = job.get("embeds_in_workers", True)
    if not hashing.HashingEmbedder.cpu_bound:
        _forbid_vectors_of_workers()
    workers._start = _start_thread  # the stand-in is no process
    workers.prepare = lambda experiment: None  # so there is none to fork it from
    for name in ("put", "delete", "create", "finish"):
        for store in (local.LocalStore, s3vectors.S3VectorsStore):
            _wrap(store, name, step, f"store.{name}")
    for name in ("_replace", "delete"):
        _wrap(state.LocalState, name, step, f"state.{name.strip('_')}")
    for name in ("_put", "delete"):
        _wrap(state.S3State, name, step, f"state.{name.strip('_')}")
    _wrap(manifest.Ledger, "_prepare", step, "ledger.prepare")
    _wrap(os, "fsync", step, "fsync")  # a file is written beside the one that it is to replace
    _wrap_transactions(step)


def _wrap(owner: Any, name: str, step: Callable[[str], None], called: str) -> None:
    """What stands before a call is what stood after the one before it, so only the end of a call is a step."""
    function = getattr(owner, name)

    @wraps(function)
    def stepping(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        step(called)
        return result

    setattr(owner, name, stepping)


def _forbid_vectors_of_workers() -> None:
    """Have a run fail whose workers make vectors although the embedder is to be called beside them."""
    embed = Workshop.embed

    @wraps(embed)
    def nothing(self: Workshop, items: Any) -> None:
        assert embed(self, items) is None

    Workshop.embed = nothing  # type: ignore[method-assign]


def _wrap_transactions(step: Callable[[str], None]) -> None:
    transaction = manifest.Ledger._transaction

    @contextmanager
    def stepping(self: manifest.Ledger) -> Iterator[None]:
        with transaction(self):
            yield
        step("ledger.commit")

    manifest.Ledger._transaction = stepping  # type: ignore[method-assign]


class _NoProcess:
    """What the threads of the workers see of a worker that is a thread itself."""

    exitcode = 0

    def kill(self) -> None:
        """It ends when its pipe is closed."""

    def join(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""


def _start_thread(experiment: Any, **options: Any) -> Any:
    """A worker in a thread: parsing takes no part in the order of writes, and starting a process would cost most."""
    ours, theirs = multiprocessing.Pipe()

    def serve() -> None:
        shop = Workshop(experiment, **options)
        with suppress(EOFError, OSError), theirs:
            while True:
                _serve_batch(theirs, shop, theirs.recv())

    threading.Thread(target=serve, daemon=True).start()
    return workers._Worker(_NoProcess(), ours)  # type: ignore[arg-type]  # see _NoProcess


if __name__ == "__main__":
    main()
