"""What the tests of crashes share: the process that forks children, corpora that change, and what an index must hold."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cli import experiment

REPOSITORY = Path(__file__).parents[1]
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

Corpus = Mapping[str, str]
Held = dict[str, Any]  # what a dump says
Step = tuple[str, int]  # its name, and the how manieth of that name it is


@dataclass(frozen=True)
class Done:
    """How a child ended."""

    status: int
    steps: list[str]


class Zygote:
    """`tests.crash_zygote` as a process. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.log = folder / "log"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash_zygote"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("AWS_")}, **ACCOUNT},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ingest(self, bench: Bench, **job: Any) -> Done:
        """Run `ragctl ingest` in a child."""
        return self.run("ingest", str(bench.config), **job)

    def run(self, *arguments: str, **job: Any) -> Done:
        """Run any command in a child."""
        return self._do({"arguments": arguments, **job})

    def ingest_and_dump(self, bench: Bench, **job: Any) -> tuple[Done, Held]:
        """Run it undisturbed, and see what index and ledger hold then; nothing where it did not end with 0."""
        out = self._folder / "dump.json"
        out.unlink(missing_ok=True)
        done = self.ingest(bench, dump=str(bench.config), out=str(out), **job)
        return done, json.loads(out.read_text()) if done.status == 0 else {}

    def warm(self, bench: Bench) -> None:
        """Have everything imported that a run over this corpus needs."""
        self._do({"warm": str(bench.config)})

    def _do(self, job: dict[str, Any]) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, "log": str(self.log)}) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))


@dataclass
class Bench:
    """One experiment over a corpus of its own, with its store and its state somewhere."""

    folder: Path
    sections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        sections = {
            "chunking": {"size": 90},
            "embedding": {"kind": "hashing", "dimension": 64},
            "ingest": {
                "workers": 1,
                "put_concurrency": 1,
                "embed_concurrency": 1,
                "max_delete": 1.0,
                "checkpoint_s": 600,
            },
            **self.sections,
        }
        self.config = experiment(self.folder, **sections)

    def write(self, corpus: Corpus) -> None:
        """Make the source hold exactly this; a file with the content of earlier has the time of earlier."""
        docs = self.folder / "docs"
        docs.mkdir(exist_ok=True)
        for path in docs.iterdir():
            if path.name not in corpus:
                path.unlink()
        for name, text in corpus.items():
            (docs / name).write_text(text, encoding="utf-8")
            digest = blake2b(text.encode(), digest_size=4).digest()
            stamp = 1_600_000_000 + int.from_bytes(digest, "big") % 100_000_000
            os.utime(docs / name, (stamp, stamp))


def store_at(url: str | None, index: str) -> dict[str, Any]:
    """The store section: S3 Vectors at the address, or a folder."""
    if url is None:
        return {"kind": "local", "path": "store", "index": index}
    return {"kind": "s3vectors", "bucket": "library", "index": index}


def aws_at(vectors: str | None, s3: str | None) -> dict[str, Any]:
    """The aws section."""
    endpoints = {name: url for name, url in (("s3vectors", vectors), ("s3", s3)) if url}
    return {"region": "eu-west-1", "endpoints": endpoints}


class References:
    """What undisturbed runs over a corpus leave in a new index, and `verify --full` finds right: made once for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Held] = {}
        self._lock = threading.Lock()

    def of(self, corpus: Corpus, zygote: Zygote) -> Held:
        name = blake2b(json.dumps(corpus, sort_keys=True).encode(), digest_size=8).hexdigest()
        with self._lock:
            known = self._known.get(name)
        if known is not None:
            return known
        bench = Bench(self._folder / f"{name}-{threading.get_ident()}")
        bench.write(corpus)
        done, held = zygote.ingest_and_dump(bench, verify=True)
        assert done.status == 0, zygote.log.read_text()[-3_000:]
        assert (held["drift"]["clean"], held["ledger"]["loose"], held["doubles"]) == (True, [], 0)
        with self._lock:
            self._known[name] = held
        return held


def differences(held: Held, reference: Held) -> list[str]:
    """What is not as it must be; empty when all is."""
    there, wanted = held["records"], reference["records"]
    found = [f"lost {key} of {wanted[key][0]['document']}" for key in sorted(wanted.keys() - there.keys())]
    found += [f"orphan {key} of {there[key][0]['document']}" for key in sorted(there.keys() - wanted.keys())]
    found += [
        f"{key} is {there[key]} and must be {wanted[key]}"
        for key in sorted(wanted.keys() & there.keys())
        if there[key] != wanted[key]
    ]
    for name, rows in held["ledger"].items():
        found += [f"{name} of the ledger has {row}" for row in rows if row not in reference["ledger"][name]]
        found += [f"{name} of the ledger lacks {row}" for row in reference["ledger"][name] if row not in rows]
    if held["doubles"]:
        found.append(f"{held['doubles']} keys stand twice")
    if held["journal"]:
        found.append(f"left of the journal: {held['journal']}")
    return found


def numbered(steps: list[str]) -> list[Step]:
    """Each step with how often it came up to then; only the one that is asked for, where one is."""
    counts: Counter[str] = Counter()
    found = []
    for step in steps:
        counts[step] += 1
        found.append((step, counts[step]))
    only = os.environ.get("CRASH_STEP")
    return [(name, nth) for name, nth in found if only in (None, f"{name}:{nth}")]


# --- corpora ---------------------------------------------------------------------------------------------

SHARED = "This paragraph stands in more than one file, word for word, as notices of all kinds do."


def text(rng: random.Random) -> str:
    """A document of one to five paragraphs, one of which others may have, too."""
    words = [
        "basin",
        "gauge",
        "flood",
        "sonde",
        "meter",
        "river",
        "delta",
        "notch",
        "valve",
        "drift",
        "sluice",
        "weir",
    ]
    paragraphs = [" ".join(rng.choices(words, k=12)) + "." for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.4:
        paragraphs.insert(rng.randrange(len(paragraphs) + 1), SHARED)
    return "\n\n".join(paragraphs)


def records(rng: random.Random, ids: list[int]) -> str:
    """A file of records."""
    return "\n".join(json.dumps({"id": number, "text": text(rng)}) for number in ids)


def changed(corpus: Corpus, past: list[Corpus], rng: random.Random) -> Corpus:
    """A few edits: texts grown, cut and turned around, files and records that come, go and come back as they were."""
    new = dict(corpus)
    for _ in range(rng.randint(1, 5)):
        name = f"d{rng.randrange(9)}.md"
        match rng.choice(["write", "move", "delete", "back", "records"]):
            case "write":
                new[name] = text(rng)
            case "move" if name in new:
                new[name] = "\n\n".join(["A new beginning.", *reversed(new[name].split("\n\n"))])
            case "delete" if len(new) > 2:
                new.pop(name, None)
            case "back" if past:
                old = rng.choice(past)
                new |= {name: old[name]} if name in old else {}
            case "records":
                lines = new["r.jsonl"].splitlines()
                kept = [line for line in lines if rng.random() < 0.8]
                kept += [json.dumps({"id": rng.randrange(30, 60), "text": text(rng)})]
                unique = {json.loads(line)["id"]: line for line in kept}
                new["r.jsonl"] = "\n".join(unique.values())
    return new


def first(rng: random.Random) -> Corpus:
    """A corpus to begin with."""
    return {**{f"d{i}.md": text(rng) for i in range(6)}, "r.jsonl": records(rng, list(range(5)))}


def history(seed: int, length: int) -> list[Corpus]:
    """One corpus after the other."""
    rng = random.Random(seed)
    past = [first(rng)]
    while len(past) < length:
        past.append(changed(past[-1], past, rng))
    return past
