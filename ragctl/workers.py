"""Worker processes that parse: a document that crashes, hangs or eats memory costs itself and nothing else.

A thread for each worker hands it a few files at a time and passes on what it sends. When a worker dies or is silent
for too long, the file that it was at has failed, the rest of its hand goes back to the queue, and a new one starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from typing import TYPE_CHECKING, Any

from ragctl.errors import ServiceError, StateError
from ragctl.scratch import scratch_folder
from ragctl.worker import Failed, Finished, Item, Same, Task, serve, with_vectors

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

    from ragctl.config import Experiment

HAND_FILES = 32  # files that a worker gets at once, so that small ones do not each cost a round trip
HAND_BYTES = 1_000_000  # and so many bytes, so that large ones are spread over the workers
IDLE_DEATHS = 3  # in a row, of workers that had begun with no file: that is no accident

# Of the sockets, in bytes, as macOS allows; Linux has 107 for a path
LONGEST_FOLDER = 103 - len("/listener-12345678")
_PLACING = threading.Lock()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers:
    """A set of workers on an iterator of tasks. `deliver` gets lists of items, in the threads of the workers; it may
    block, which holds that worker back. `finish` is called once when everything was delivered or the set stopped;
    its argument is the error that ended it, if one did. `embeds` false: no vectors are made, whatever the embedder.
    """

    def __init__(
        self,
        experiment: Experiment,
        tasks: Iterator[Task],
        deliver: Callable[[list[Item]], None],
        finish: Callable[[BaseException | None], None],
        *,
        embeds: bool = True,
    ) -> None:
        self._experiment = experiment
        self._embeds = embeds
        self._tasks = tasks
        self._deliver = deliver
        self._finish = finish
        self._lock = threading.Lock()
        self._again: list[Task] = []
        self._stopping = threading.Event()
        self._count = experiment.ingest.workers or os.cpu_count() or 1
        self._running = self._count
        self._died_idle = 0  # in a row
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"worker-{i}", daemon=True) for i in range(self._count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no further files; what the workers have in hand is dropped."""
        self._stopping.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        worker: _Worker | None = None
        try:
            _shield()
            while not self._stopping.is_set() and (hand := self._next_hand()):
                worker = worker or _start(self._experiment, embeds=self._embeds)
                worker = self._work(worker, hand)
        except BaseException as error:  # noqa: BLE001  handed to the run, which raises it in its own thread
            self._error = error
        finally:
            if worker is not None:
                worker.kill()
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last:
            self._finish(self._error)

    def _next_hand(self) -> list[Task]:
        hand: list[Task] = []
        size = 0
        with self._lock:
            while len(hand) < HAND_FILES and size < HAND_BYTES:
                task = self._again.pop() if self._again else next(self._tasks, None)
                if task is None:
                    break
                hand.append(task)
                size += task.file.size
        return hand

    def _work(self, worker: _Worker, hand: list[Task]) -> _Worker | None:
        """Have the worker do the hand. None: it had to be killed."""
        at: int | None = None  # the file of the hand that it is working on
        done: set[str] = set()
        try:
            worker.pipe.send(hand)
            while not self._stopping.is_set():
                kind, value = self._receive(worker)
                if kind == "started":
                    at = value
                    self._died_idle = 0
                elif kind == "items":
                    items, vectors = value
                    done.update(item.file for item in items if isinstance(item, Finished | Same))
                    self._deliver(with_vectors(items, vectors))
                else:
                    return worker
        except TimeoutError:
            self._blame(hand, at, done, f"took longer than {self._experiment.parsing.timeout_s:g} s to parse")
        except (EOFError, ConnectionError):
            worker.process.join(5)
            ending = _ending(worker.process.exitcode)
            if at is None:
                self._hand_back(hand, ending)
            else:
                self._blame(hand, at, done, f"crashed the parser ({ending})")
        worker.kill()
        return None

    def _receive(self, worker: _Worker) -> tuple[str, Any]:
        waited = 0.0
        while not worker.pipe.poll(0.5):
            waited += 0.5
            if self._stopping.is_set():
                return "finished", None
            if waited >= self._experiment.parsing.timeout_s:
                raise TimeoutError
        message: tuple[str, Any] = worker.pipe.recv()
        return message

    def _hand_back(self, hand: list[Task], ending: str) -> None:
        """The worker died before it began with any of the files, so that none is to blame."""
        with self._lock:
            self._again += hand
            self._died_idle += 1
        if self._died_idle > IDLE_DEATHS:
            raise ServiceError(
                f"the parser processes end before they begin ({ending})",
                hint="is memory short, or the number of processes limited? What they said stands above",
            )

    def _blame(self, hand: list[Task], at: int | None, done: set[str], error: str) -> None:
        """File `at` of the hand has failed; those that it dragged along are done again."""
        at = at or 0  # a worker that is not heard of at all within the time of a document
        file = hand[at].file
        if file.id not in done:  # else all of it has arrived, and the worker died before it went on
            self._deliver([Failed(file.id, file.id, "parse", error), Finished(file.id, "", whole=False)])
        with self._lock:
            self._again += [task for i, task in enumerate(hand) if i != at and task.file.id not in done]


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "it hangs"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"


def _shield() -> None:
    """Keep what this thread starts from interrupts: Ctrl-C and a service manager signal every process of a run.

    The process that workers are forked from inherits the mask; it would end by SIGTERM, and its workers with it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    resource_tracker.ensure_running()  # between: it lets the other two through again once it has started
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def prepare(experiment: Experiment) -> None:
    """Start the process that workers are forked from, beside whatever comes first: it takes 0.3 s. Once is enough."""
    threading.Thread(target=_start_server, args=(experiment,), daemon=True).start()


def _start_server(experiment: Experiment) -> None:
    _shield()
    with suppress(StateError):  # told by the first worker that is started
        _context(experiment)
        forkserver.ensure_running()


def _context(experiment: Experiment) -> ForkServerContext:
    _place_sockets()
    context = multiprocessing.get_context("forkserver")  # fork is not safe beside threads
    context.set_forkserver_preload(list(_preloaded(experiment)))
    return context


def _place_sockets() -> None:
    """Give multiprocessing a scratch folder for its socket, once per process: what it makes itself stays after a kill.

    Not where the path would be too long for a socket; its own is shorter by some bytes.
    """
    with _PLACING:
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001  no other way
        if config.get("tempdir") is None:
            stack = ExitStack()
            folder = stack.enter_context(scratch_folder())
            if len(os.fsencode(folder)) > LONGEST_FOLDER:
                stack.close()
                return
            config["tempdir"] = str(folder)
            # Last of all; and not in a process that was forked from this
            util.Finalize(None, stack.close, exitpriority=-100)


def _preloaded(experiment: Experiment) -> Iterator[str]:
    """What is imported once, in the process that workers are forked from: up to half a second and 60 MB."""
    yield from ("ragctl.worker", "ragctl.parsing", "ragctl.sources")
    if experiment.embedding.kind == "hashing":
        yield "ragctl.adapters.hashing"
    if experiment.chunking.kind != "record":
        yield "langchain_text_splitters"


def _start(experiment: Experiment, *, embeds: bool) -> _Worker:
    context = _context(experiment)
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, experiment, embeds, dict(os.environ)), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)
