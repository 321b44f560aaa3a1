"""A plan in a file, and whether the world is still as it was when the plan was made.

The world is what an ingest starts from: the listing of the sources, the ledger, and the settings that shape the index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ragctl import fingerprints
from ragctl.errors import ConfigError, Refused
from ragctl.records import short_hash
from ragctl.state import write_whole

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.manifest import Ledger
    from ragctl.planning import Listing

SCHEMA: Final = "ragctl.plan/1"
SHAPING: Final = {"sources", "parsing", "chunking", "embedding", "store", "tenancy", "cache"}


@dataclass(frozen=True, slots=True)
class World:
    """What an ingest into one index starts from, as hashes."""

    listing: str
    ledger: str
    settings: str

    @classmethod
    def of(cls, experiment: Experiment, ledger: Ledger, listing: Listing) -> World:
        """The world of now. `listing` and `ledger` are those of the experiment's one index."""
        files = ((file.id, file.size, file.stamp) for file in listing)
        rows = ((r.id, r.size, r.stamp, r.content_hash, r.fingerprint, r.done) for r in ledger.files())
        return cls(_digest(files), _digest(rows), _settings(experiment))


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan that an ingest must still be like."""

    path: Path
    worlds: Mapping[str, World]  # by index

    @classmethod
    def read(cls, path: Path) -> SavedPlan:
        """Raises ConfigError when the file cannot be read or is no plan."""
        try:
            document = json.loads(path.read_bytes())
            if document["schema"] != SCHEMA:
                raise ConfigError(f"{path}: is no plan of this version of ragctl ({document['schema']})")
            return cls(path, {name: World(**world) for name, world in document["worlds"].items()})
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}: is no plan", hint="make one: ragctl plan CONFIG --save FILE"
            ) from error

    def check(self, experiment: Experiment, ledger: Ledger, listing: Listing) -> None:
        """Raise Refused, naming what is different, unless the world is as it was planned."""
        index = experiment.store.index
        planned = self.worlds.get(index)
        if planned is None:
            raise Refused(f"{self.path}: the plan does not know index {index}", hint=_AGAIN)
        now = World.of(experiment, ledger, listing)
        reasons = {
            "the settings": planned.settings != now.settings,
            "the files of the sources": planned.listing != now.listing,
            "what is in the index": planned.ledger != now.ledger,
        }
        if changed := [what for what, differs in reasons.items() if differs]:
            raise Refused(
                f"{self.path}: the plan does not hold any more for index {index}: since it was made, "
                f"{' and '.join(changed)} changed; nothing was done",
                hint=_AGAIN,
            )


_AGAIN: Final = "plan again: ragctl plan CONFIG --save FILE"


def save(path: Path, document: Mapping[str, Any], worlds: Mapping[str, World]) -> None:
    """Write what `plan --json` prints, with the world that it is about. Raises ConfigError when that cannot be."""
    whole = {**document, "worlds": {name: asdict(world) for name, world in worlds.items()}}
    try:
        write_whole(path, (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _settings(experiment: Experiment) -> str:
    shaping = experiment.model_dump(mode="json", include=SHAPING)
    return short_hash(json.dumps([shaping, fingerprints.of_sources(experiment)], sort_keys=True))


def _digest(rows: Iterable[tuple[object, ...]]) -> str:
    digest = blake2b(digest_size=10)
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
