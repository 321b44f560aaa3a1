"""Which process of which machine somebody is or was, and whether it can be seen to be no more."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as it is written where others may look for it."""

    host: str
    pid: int
    started: str  # its start time, so that a reused pid is not taken for it; "" where that is not known
    space: str = ""  # in which the pid means something, see `_space`; "" where that is not known

    @classmethod
    def ourselves(cls) -> Self:
        """The process that asks."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _started(pid) or "", _space())

    @property
    def is_here(self) -> bool:
        """Whether its pid is one that we can look up. Containers may share a name and not their processes."""
        return self.host == socket.gethostname() and self.space in ("", _space()) and bool(self.started)

    @property
    def is_dead(self) -> bool:
        """Whether we can see that it is no more."""
        return self.is_here and _started(self.pid) != self.started


def _space() -> str:
    """Where our pid means something: this boot of the kernel, and our PID namespace in it; "" without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When process `pid` of this machine started, in clock ticks since boot; None: no such process (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]  # proc(5): field 22, counted from after the name
