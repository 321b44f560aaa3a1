"""Where the ledger, leases and deployment records live: a local folder, or a prefix of a bucket for machines that
do not last. Both give the same two promises: a file is written whole or not at all, and a conditional write loses to
whoever wrote first.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

from ragctl.errors import StateError
from ragctl.records import short_hash

if TYPE_CHECKING:
    from ragctl.config import Experiment


class Conflict(Exception):
    """Somebody else wrote the file since we read it."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """A file's bytes, and a version that differs whenever the bytes do."""

    data: bytes
    version: str


class State(Protocol):
    """A flat set of named files."""

    place: str  # for messages

    def read(self, name: str) -> Versioned | None: ...  # None: there is no such file
    def write(self, name: str, data: bytes, *, expect: str | None) -> str: ...
    # expect: the version to replace, None where there must be no file yet; Conflict otherwise. The new version
    def overwrite(self, name: str, data: bytes) -> str: ...  # whatever is there
    def delete(self, name: str) -> None: ...  # absent is fine
    def names(self, prefix: str) -> list[str]: ...  # sorted


def ledger_name(index: str) -> str:
    """The ledger's file in the state location."""
    return f"{index}/ledger.sqlite"


def lease_name(index: str) -> str:
    """The lease's file in the state location."""
    return f"{index}/lease.json"


def open_state(experiment: Experiment) -> State:
    """The experiment's state location; a local folder is made when something is written."""
    return state_at(experiment.state, experiment)


def state_at(place: str, experiment: Experiment) -> State:
    """The state location `place`: a folder, or s3://bucket/prefix in the experiment's account."""
    if not place.startswith("s3://"):
        return LocalState(Path(place))
    from ragctl.adapters.aws import client

    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return S3State(client("s3", experiment), bucket, prefix)


class LocalState:
    """A folder. Writers exclude one another by a lock on a file in it, for the moment of the write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = str(folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> Versioned | None:
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.path(name)}: cannot be read: {error.strerror}") from error
        return Versioned(data, short_hash(data))

    def write(self, name: str, data: bytes, *, expect: str | None) -> str:
        with self._locked():
            found = self.read(name)
            if (found.version if found else None) != expect:
                raise Conflict(name)
            return self._replace(name, data)

    def overwrite(self, name: str, data: bytes) -> str:
        with self._locked():
            return self._replace(name, data)

    def delete(self, name: str) -> None:
        try:
            self.path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{self.path(name)}: cannot be removed: {error.strerror}") from error

    def names(self, prefix: str) -> list[str]:
        if not self.folder.is_dir():
            return []
        found = (str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return sorted(name for name in found if name.startswith(prefix) and name != ".lock")

    def _replace(self, name: str, data: bytes) -> str:
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise StateError(f"{path}: cannot be written: {error.strerror}") from error
        return short_hash(data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise StateError(f"{self.folder}: cannot be written: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file closes, also by a kill
            yield


MARK: Final = "ragctl-write"  # user metadata of an object: which write made it
UNDECIDED_S: Final = (0.2, 1.0, 5.0)  # pauses before a write that another got in the way of is made again


class S3State:
    """A prefix of a bucket; versions are ETags, conditions are S3's If-Match and If-None-Match.

    An answer may be lost on its way. The SDK then writes once more, and what refuses that is our own first write. So
    every conditional write has a mark of its own, and an object that has it is ours. To compare bytes would not do:
    somebody else may have written the same ones, a deployment record for instance, and must not be taken for us.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.place = f"s3://{bucket}/{self._prefix}"

    def read(self, name: str) -> Versioned | None:
        from ragctl.adapters.aws import aws_errors
        from ragctl.errors import NotFound

        try:
            with aws_errors("s3:GetObject", self.place + name):
                reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                return Versioned(reply["Body"].read(), reply["ETag"])
        except NotFound as error:
            if self._code(error) in ("NoSuchKey", "404"):
                return None
            raise

    def write(self, name: str, data: bytes, *, expect: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if expect is None else {"IfMatch": expect}
        mark = uuid4().hex
        try:
            return self._put(name, data, **condition, Metadata={MARK: mark})
        except Conflict:
            version = self._version_marked(name, mark)
            if version is None:
                raise
            return version

    def overwrite(self, name: str, data: bytes) -> str:
        return self._put(name, data)

    def delete(self, name: str) -> None:
        from ragctl.adapters.aws import aws_errors

        with aws_errors("s3:DeleteObject", self.place + name):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def names(self, prefix: str) -> list[str]:
        from ragctl.adapters.aws import aws_errors

        with aws_errors("s3:ListBucket", self.place + prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return sorted(
                item["Key"].removeprefix(self._prefix) for page in pages for item in page.get("Contents", ())
            )

    def _put(self, name: str, data: bytes, **options: Any) -> str:
        from botocore.exceptions import ClientError

        from ragctl.adapters.aws import aws_errors

        pauses = iter(UNDECIDED_S)
        while True:
            with aws_errors("s3:PutObject", self.place + name):
                try:
                    reply = self._client.put_object(
                        Bucket=self._bucket, Key=self._prefix + name, Body=data, **options
                    )
                    return str(reply["ETag"])
                except ClientError as error:
                    # 409: a write at the same time, perhaps our own whose answer is lost, is not through yet;
                    # 412: not the version we expect (or one is there); 404 with If-Match: the file was deleted since
                    code = error.response["Error"]["Code"]
                    is_undecided = code == "ConditionalRequestConflict"
                    pause = next(pauses, None) if is_undecided else None
                    if pause is None:
                        if is_undecided or code == "PreconditionFailed" or (options and code == "NoSuchKey"):
                            raise Conflict(name) from error
                        raise
            time.sleep(pause)

    def _version_marked(self, name: str, mark: str) -> str | None:
        """The version of the object as the write with this mark left it; None where another write, or none, did."""
        from ragctl.adapters.aws import aws_errors
        from ragctl.errors import NotFound

        try:
            with aws_errors("s3:HeadObject", self.place + name):
                reply = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
        except NotFound:
            return None
        return str(reply["ETag"]) if reply["Metadata"].get(MARK) == mark else None

    @staticmethod
    def _code(error: Exception) -> str:
        cause = error.__cause__
        return str(getattr(cause, "response", {}).get("Error", {}).get("Code", ""))


def write_whole(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to the disk, move into place: a reader or a crash sees the old file or the new."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
