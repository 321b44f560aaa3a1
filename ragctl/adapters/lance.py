"""Importing LanceDB quickly and opening it within bounds.

Quickly: a third of a second instead of a whole one, where a local query may take 0.8 s in all. Most of
`import lancedb` goes into pydantic models for a REST catalogue client, checks of method signatures with the
`overrides` package, and parts of pyarrow (which bring pandas along where that is installed). Opening a local folder
and searching it needs none of them, so stand-ins answer for them while LanceDB is imported. Once that is done the
stand-ins are gone from `sys.modules`: what LanceDB has kept of them fetches the real thing when it is used.
Should a later LanceDB not get along with this, the plain import takes over.

Within bounds: left to its defaults it reads ahead up to 2 GiB, caches up to 7 GiB, and spreads its buffers over eight
heaps per core, none of which shrinks. Building a vector index over 1.2 GB takes 0.2 GB so.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

STAND_INS = (
    "lance_namespace_urllib3_client",  # 0.5 s: some 300 pydantic models
    "overrides",  # 0.1 s: a check, which LanceDB itself leaves out from Python 3.12 on
    "pyarrow.compute",  # 0.05 s
    "pyarrow.dataset",  # 0.05 s, and 0.2 s more where pandas is installed
)
_IMPORTING = threading.Lock()

ENVIRONMENT = {
    # Its native code logs to stderr, where warnings of its own making would stand among our messages.
    "LANCEDB_LOG": "error",
    "LANCE_DEFAULT_IO_BUFFER_SIZE": str(8 * 2**20),  # bytes read ahead of whoever scans
    "LANCE_DEFAULT_BATCH_SIZE": "1024",  # rows read at once, of 8 KB each where a vector has 2,048 numbers
    "LANCE_SHUFFLE_BATCH_BYTES": str(8 * 2**20),  # of vectors sorted at once while an index is built
    # Its own choice leaves two cores to others, and of two that is one: a text index took nearly twice as long.
    "LANCE_CPU_THREADS": str(max(2, (os.cpu_count() or 2) - 2)),
}
INDEX_CACHE_BYTES = 128 * 2**20
METADATA_CACHE_BYTES = 1 * 2**20
# Of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST_BLOCK = 128 * 2**10  # larger ones come from the system, and go back to it once they are free


def connect(path: Path) -> Any:
    """Return a connection to the database in a folder, with caches of its own."""
    lancedb = import_lancedb()
    session = lancedb.Session(
        index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES
    )
    # An interval of zero: a read sees what any process has written before, as on S3 Vectors.
    return lancedb.connect(path, read_consistency_interval=timedelta(0), session=session)


def release_memory() -> None:
    """Give back to the system what is free, before something else needs as much: 1 ms for 10 MB. Linux only."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _share_one_heap() -> None:
    """Have all threads allocate from one heap, so that what one has freed serves the others: Arrow's arrays as well,
    whose own allocator keeps 10 MB. Blocks as large as a put's stay out of it: small ones that live long come to lie
    between them, and the heap grew by 30 MB with a million chunks. It costs a twentieth of the CPU time of a local
    ingest, for every page of such a block is cleared before it is used. Linux only.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_BLOCK)  # else glibc adapts it, and the other with it


def import_lancedb() -> ModuleType:
    """Return the `lancedb` package, imported with stand-ins for what a search in a local folder never uses."""
    with _IMPORTING:
        if "lancedb" in sys.modules:
            return sys.modules["lancedb"]
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _share_one_heap()
        try:
            with _collector_off(), _stand_ins():
                return importlib.import_module("lancedb")
        except Exception:  # whatever it is: the plain import decides, and raises what is not our doing
            logger.debug("LanceDB does not import with stand-ins; importing it plainly", exc_info=True)
            _forget("lancedb", keep="lancedb._lancedb")  # native code, which a process can load only once
            return importlib.import_module("lancedb")


@contextmanager
def _collector_off() -> Iterator[None]:
    """Pause the garbage collector: an import makes many objects and hardly any garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _stand_ins() -> Iterator[None]:
    importlib.import_module("pyarrow")  # the package itself is real
    absent = [name for name in STAND_INS if name not in sys.modules]
    finder = _StandInFinder(absent)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        # Whoever imports these later gets the real ones; lance_namespace has taken names from a stand-in.
        _forget(*absent, "lance_namespace")


def _forget(*names: str, keep: str = "") -> None:
    for name in list(sys.modules):
        if name != keep and any(_belongs(name, other) for other in names):
            del sys.modules[name]


def _belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


class _StandInFinder(MetaPathFinder, Loader):
    """Makes any module of the given packages, which has whatever name is asked of it."""

    def __init__(self, packages: list[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002 - the import system passes them
        if not any(_belongs(fullname, package) for package in self._packages):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "overrides":
            vars(module)["override"] = lambda method: method
        vars(module)["__getattr__"] = lambda name: _attribute(module, name)


def _attribute(module: ModuleType, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if sys.modules.get(module.__name__) is module:  # LanceDB is being imported
        return _placeholder(module.__name__, name)
    return getattr(importlib.import_module(module.__name__), name)


def _placeholder(module: str, name: str) -> type:
    """Return a class for annotations and bases that makes an instance of the real class when it is called."""

    def make(cls: type, *arguments: Any, **named: Any) -> Any:
        if cls is not placeholder:  # a subclass
            return object.__new__(cls)
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    placeholder = type(name, (), {"__new__": make, "__module__": module})
    return placeholder
