"""What every state location must do: whole files, and the first of two writers wins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ragctl.errors import StateError
from ragctl.state import Conflict, LocalState, S3State, State


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    if request.param == "local":
        return LocalState(tmp_path / "state")
    client = boto3.client(
        "s3",
        endpoint_url=request.getfixturevalue("s3"),
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    bucket = f"state-{abs(hash(tmp_path)):x}"
    client.create_bucket(Bucket=bucket)
    return S3State(client, bucket, "team/ragctl")


def test_what_is_written_is_read(state: State) -> None:
    """Bytes come back as they went in, under a version."""
    version = state.overwrite("papers/ledger.sqlite", b"\x00\xffrows")
    found = state.read("papers/ledger.sqlite")
    assert found is not None
    assert (found.data, found.version) == (b"\x00\xffrows", version)


def test_an_absent_file_is_none(state: State) -> None:
    """It is not an error, nor is deleting it."""
    assert state.read("nothing") is None
    state.delete("nothing")
    assert state.names("") == []


def test_only_the_first_of_two_creators_wins(state: State) -> None:
    """`expect=None` means that there must be no file yet."""
    state.write("lease", b"mine", expect=None)
    with pytest.raises(Conflict):
        state.write("lease", b"yours", expect=None)
    found = state.read("lease")
    assert found is not None
    assert found.data == b"mine"


def test_a_write_over_a_version_that_is_gone_is_refused(state: State) -> None:
    """Whoever read an older version must look again."""
    first = state.write("lease", b"1", expect=None)
    second = state.write("lease", b"2", expect=first)
    with pytest.raises(Conflict):
        state.write("lease", b"3", expect=first)
    state.write("lease", b"4", expect=second)
    state.delete("lease")
    with pytest.raises(Conflict):
        state.write("lease", b"5", expect=second)


def test_names_are_listed_by_prefix_and_sorted(state: State) -> None:
    """Names are relative to the location, folders are part of them."""
    for name in ("b/2", "a/1", "b/1", "c"):
        state.overwrite(name, b"x")
    assert state.names("") == ["a/1", "b/1", "b/2", "c"]
    assert state.names("b/") == ["b/1", "b/2"]


def test_of_many_writers_at_once_exactly_one_wins(state: State) -> None:
    """The lease depends on it."""
    won: list[int] = []

    def write(number: int) -> None:
        try:
            state.write("lease", str(number).encode(), expect=None)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = state.read("lease")
    assert found is not None
    assert [str(number).encode() for number in won] == [found.data]


def test_what_cannot_be_removed_is_told(tmp_path: Path) -> None:
    """With the file's name, as a fault of the state location and not of ragctl; one that is absent is fine."""
    state = LocalState(tmp_path)
    state.delete("absent")
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(StateError, match=rf"^{tmp_path}/a-folder: cannot be removed: "):
        state.delete("a-folder")
