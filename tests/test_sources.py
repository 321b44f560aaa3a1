"""Sources: what is listed, under which id, and that a listing is whole or an error."""

import logging
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from ragctl.adapters import aws
from ragctl.config import Experiment
from ragctl.errors import ConfigError, DocumentError, NotFound, Refused, ServiceError
from ragctl.parsing import parse
from ragctl.records import SourceFile
from ragctl.sources import Source, open_source
from ragctl.sources.listing import TYPES_KEPT, not_read


def source(path: Path, **settings: Any) -> Source:
    """The source `papers` at the path."""
    return _opened({"kind": "local", "name": "papers", "path": path, **settings})


def _opened(section: dict[str, Any], **sections: Any) -> Source:
    experiment = Experiment.model_validate({"name": "test", "sources": [section], **sections})
    return open_source(experiment.sources[0], experiment)


def ids(found: Source) -> list[str]:
    """The listed ids in order."""
    return sorted(file.id for file in found.list())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small tree with everything a folder has: documents, pictures, hidden files, folders in folders."""
    root = tmp_path / "root"
    for path in ("a.md", "b.PDF", "deep/er/c.txt", "deep/d.html", "photo.png", "deep/x.zip", "deep/LICENSE"):
        write(root / path)
    for hidden in (".git/config.md", ".DS_Store", "~$a.md", "deep/.e.md"):
        write(root / hidden)
    return root


def write(path: Path, text: str = "text") -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- local folders


def test_a_folder_lists_what_can_be_parsed(folder: Path) -> None:
    """Known types at any depth, ids with the source's name; nothing hidden."""
    assert ids(source(folder)) == [
        "papers/a.md",
        "papers/b.PDF",
        "papers/deep/d.html",
        "papers/deep/er/c.txt",
    ]


def test_a_file_carries_its_size_and_stamp(folder: Path) -> None:
    """The stamp is the modification time in nanoseconds; another copy of the file has the same."""
    (file,) = source(folder, include=("a.md",)).list()
    status = (folder / "a.md").stat()
    assert file == SourceFile("papers/a.md", str(folder / "a.md"), 4, str(status.st_mtime_ns), "papers", {})
    assert source(folder).read(file) == b"text"


def test_ignored_types_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the default globs leave out is in the log."""
    caplog.set_level(logging.INFO, "ragctl")
    ids(source(folder))
    assert "sources.papers: 3 files of types .png, .zip, none ignored" in caplog.messages


def test_what_nothing_reads_is_counted_by_type(folder: Path) -> None:
    """For whoever lists, and bounded: names with dots in them are no types, and a source may have any number of those."""
    for n in range(40):
        (folder / f"scan.{n:04}").touch()
    for name in ("slides.pptx", "more.PPTX", "v1. the one that was sent", "odd.\x1b[1m"):
        (folder / name).touch()
    ignored = Counter[str]()
    listed = list(source(folder).list(ignored))
    assert len(listed) == 4
    assert ignored[".pptx"] == 2
    assert len(ignored) == TYPES_KEPT + 1
    assert ignored.total() == 3 + 40 + 4  # the fixture has three
    assert not_read(ignored) == (
        "types that ragctl does not read: 2 .pptx, 1 .0000, 1 .0001, 1 .0002, 1 .0003, 41 others"
    )
    assert not_read({"none": 1, ".zip": 1200}) == "types that ragctl does not read: 1,200 .zip, 1 without"


def test_a_type_asked_for_is_listed_and_fails_clearly(folder: Path) -> None:
    """An unknown type that a glob names is a failure of that document, never silence."""
    opened = source(folder, include=("**/*.md", "**/*.png"))
    assert ids(opened) == ["papers/a.md", "papers/photo.png"]
    (picture,) = source(folder, include=("*.png",)).list()
    experiment = Experiment.model_validate(
        {"name": "t", "sources": [{"kind": "local", "name": "papers", "path": folder}]}
    )
    with pytest.raises(DocumentError, match=r"^papers/photo.png is of type .png, which ragctl cannot read$"):
        list(parse(picture, opened.read(picture), experiment.parsing, ()))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"include": ("*.md",)}, ["a.md"]),
        ({"include": ("deep/**",)}, ["deep/d.html", "deep/er/c.txt"]),
        ({"exclude": ("deep",)}, ["a.md", "b.PDF"]),
        ({"exclude": ("**/er/**", "*.PDF")}, ["a.md", "deep/d.html"]),
        ({"include": (".git/*.md",)}, [".git/config.md"]),
        ({"include": ("**/*.docx",)}, []),
    ],
)
def test_globs_choose(folder: Path, settings: dict[str, Any], expected: list[str]) -> None:
    """Includes say what, excludes take away, hidden names are listed when spelt out."""
    assert ids(source(folder, **settings)) == [f"papers/{path}" for path in expected]


def test_a_single_file_is_a_source(folder: Path) -> None:
    """Whatever its type and the globs: it was named."""
    assert ids(source(folder / "photo.png", include=("*.md",))) == ["papers/photo.png"]


def test_names_are_normalised(tmp_path: Path) -> None:
    """The same id on a machine that stores letters and accents apart; bytes that are no UTF-8 are spelt out."""
    write(tmp_path / "cafe\u0301.md")
    write(tmp_path / "bad\udce9.md")
    found = source(tmp_path)
    assert ids(found) == ["papers/bad\\xe9.md", "papers/caf\u00e9.md"]
    assert [found.read(file) for file in found.list()] == [b"text", b"text"]


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    """One of them would silently replace the other."""
    write(tmp_path / "cafe\u0301.md")
    write(tmp_path / "caf\u00e9.md")
    with pytest.raises(Refused, match=r"two files have the name café[.]md"):
        ids(source(tmp_path))


def test_links_are_not_followed_unless_asked(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A link may lead out of the corpus."""
    caplog.set_level(logging.INFO, "ragctl")
    write(tmp_path / "elsewhere" / "out.md")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "link.md").symlink_to(folder / "a.md")
    assert "papers/link/out.md" not in ids(source(folder))
    assert "sources.papers: 2 symbolic links not followed" in caplog.messages
    followed = ids(source(folder, follow_links=True))
    assert {"papers/link/out.md", "papers/link.md"} < set(followed)


def test_a_loop_of_links_ends(folder: Path) -> None:
    """A link to a folder above is not entered again."""
    (folder / "deep" / "up").symlink_to(folder)
    assert ids(source(folder, follow_links=True)) == ids(source(folder))


def test_a_link_to_nothing_is_refused_when_links_are_followed(folder: Path) -> None:
    """It may stand for a disk that is not mounted, and its documents would seem deleted."""
    (folder / "data").symlink_to(folder / "gone")
    with pytest.raises(
        Refused, match="data: No such file or directory; the listing is incomplete; nothing was changed"
    ):
        ids(source(folder, follow_links=True))
    assert ids(source(folder, follow_links=True, exclude=("data",))) == ids(source(folder))


def test_a_pipe_is_no_document(folder: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(folder / "pipe.md")
    assert "papers/pipe.md" not in ids(source(folder))


def test_a_missing_root_is_a_mistake_in_the_config(tmp_path: Path) -> None:
    """Not an empty corpus, which would delete everything."""
    missing = tmp_path / "x"
    with pytest.raises(ConfigError, match=f"^sources.papers: {missing} does not exist$"):
        ids(source(missing))


@pytest.mark.parametrize(
    "fault", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file or directory")]
)
def test_a_folder_that_cannot_be_read_refuses_the_listing(
    folder: Path, fault: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unreadable, or vanished while listing: a shorter list is never taken for the whole."""
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("deep"):
            raise type(fault)(fault.errno, fault.strerror, path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(Refused) as refused:
        ids(source(folder))
    assert refused.value.exit_status == 6
    assert refused.value.message == (
        f"sources.papers: {folder}/deep: {fault.strerror}; the listing is incomplete; nothing was changed"
    )
    assert ids(source(folder, exclude=("deep",))) == ["papers/a.md", "papers/b.PDF"]


def test_a_root_that_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the folder itself."""

    def denied(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(
        Refused, match=f"sources.papers: {folder}: Permission denied; the listing is incomplete"
    ):
        ids(source(folder))


def test_reading_what_has_vanished(folder: Path) -> None:
    """A failure of that document."""
    found = source(folder)
    files = {file.id: file for file in found.list()}
    (folder / "a.md").unlink()
    with pytest.raises(DocumentError, match=r"^papers/a.md has vanished since it was listed$"):
        found.read(files["papers/a.md"])


def test_reading_what_cannot_be_read(folder: Path) -> None:
    """The system's reason is passed on."""
    (file,) = source(folder, include=("a.md",)).list()
    (folder / "a.md").unlink()
    (folder / "a.md").mkdir()
    with pytest.raises(DocumentError, match=r"^papers/a.md cannot be read: Is a directory$"):
        source(folder).read(file)


def test_a_file_above_the_limit_is_a_failure(folder: Path) -> None:
    """Whatever it weighed when it was listed."""
    section = {"kind": "local", "name": "papers", "path": folder, "include": ("a.md",)}
    found = _opened(section, parsing={"max_file_mb": 1_047 / 1024**2})
    (file,) = found.list()
    assert found.read(file) == b"text"
    (folder / "a.md").write_bytes(b"x" * 2_000)
    with pytest.raises(DocumentError, match=r"^papers/a.md is larger than 0.000998 MB$"):
        found.read(file)


def test_a_file_that_grows_while_it_is_read_is_read_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one that does not know its size; and neither gets past the limit."""
    section = {"kind": "local", "name": "papers", "path": folder, "include": ("a.md",)}
    found = _opened(section, parsing={"max_file_mb": 1_047 / 1024**2})
    (file,) = found.list()
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((0,) * 10))
    (folder / "a.md").write_bytes(b"x" * 1_047)
    assert found.read(file) == b"x" * 1_047
    (folder / "a.md").write_bytes(b"x" * 1_048)
    with pytest.raises(DocumentError, match=r"^papers/a.md is larger than 0.000998 MB$"):
        found.read(file)


def test_metadata_of_path_and_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The path wins over the config; a path that does not fit keeps the config's, and is counted."""
    caplog.set_level(logging.INFO, "ragctl")
    write(tmp_path / "acme/2024/a.md")
    write(tmp_path / "b.md")
    found = source(
        tmp_path, path_metadata="{customer}/{year}/*.md", metadata={"customer": "nobody", "team": "sales"}
    )
    assert {file.id: file.metadata for file in found.list()} == {
        "papers/acme/2024/a.md": {"customer": "acme", "year": 2024, "team": "sales"},
        "papers/b.md": {"customer": "nobody", "team": "sales"},
    }
    assert "sources.papers: path_metadata does not fit 1 files" in caplog.messages


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ("/x",)}, "sources.papers: '/x' matches nothing"),
        ({"path_metadata": "{page}/*"}, "sources.papers: '{page}/\\*': ragctl writes 'page' itself"),
    ],
)
def test_faults_of_globs_are_found_at_the_start(folder: Path, settings: dict[str, Any], message: str) -> None:
    """Before anything is listed."""
    with pytest.raises(ConfigError, match=message):
        source(folder, **settings)


# --- zip archives


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip as BEIR makes them, with a member that unpacks to much."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.mkdir("set")
        target.writestr("set/corpus.jsonl", '{"_id": "1"}')
        target.writestr("set/logo.png", b"png")
        target.writestr("set/bomb.txt", b"0" * 50_000)
    return path


def test_the_members_of_a_zip_are_its_files(archive: Path) -> None:
    """Ids of the members, stamps that change with the archive and the member."""
    found = source(archive, include=("**/*.jsonl",))
    (file,) = found.list()
    assert (file.id, file.size) == ("papers/set/corpus.jsonl", 12)
    assert file.stamp.startswith(f"{archive.stat().st_mtime_ns}-")
    assert found.read(file) == b'{"_id": "1"}'


def test_members_lie_where_they_are_unpacked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some archivers write `./a`, some `/a`; what would lie outside is left out, and told."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as target:
        for name in ("./a.txt", "./sub/./b.txt", "/c.txt", "d.txt", "../e.txt"):
            target.writestr(name, f"text of {name}")
    found = source(path)
    files = {file.id: found.read(file) for file in found.list()}
    assert files == {
        "papers/a.txt": b"text of ./a.txt",
        "papers/sub/b.txt": b"text of ./sub/./b.txt",
        "papers/c.txt": b"text of /c.txt",
        "papers/d.txt": b"text of d.txt",
    }
    assert caplog.messages == [f"sources.papers: {path}: members outside of the archive are left out: 1"]


def test_a_zip_replaced_is_read_anew(archive: Path) -> None:
    """Nothing of the old archive is kept."""
    found = source(archive, include=("**/*.jsonl",))
    (before,) = found.list()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("set/corpus.jsonl", "new")
    os.utime(archive, ns=(1, 1))
    (after,) = found.list()
    assert before.stamp != after.stamp
    assert found.read(after) == b"new"


def test_a_zip_bomb_ends_at_the_limit(archive: Path) -> None:
    """The size is counted while unpacking."""
    section = {"kind": "local", "name": "papers", "path": archive, "include": ("**/*.txt",)}
    found = _opened(section, parsing={"max_file_mb": 0.01})
    (file,) = found.list()
    with pytest.raises(DocumentError, match=r"^papers/set/bomb.txt is larger than 0.01 MB$"):
        found.read(file)


def test_a_member_that_is_gone_damaged_or_encrypted(archive: Path) -> None:
    """Each is a failure of that document."""
    found = source(archive, include=("**/*.jsonl",))
    (file,) = found.list()
    gone = SourceFile("papers/set/no.jsonl", f"{archive}!set/no.jsonl", 1, "1", "papers")
    with pytest.raises(DocumentError, match="has vanished since it was listed"):
        found.read(gone)
    raw = archive.read_bytes()
    at = raw.index(b"set/corpus.jsonl") + len("set/corpus.jsonl")
    archive.write_bytes(raw[:at] + bytes(4) + raw[at + 4 :])
    os.utime(archive, ns=(1, 1))
    with pytest.raises(
        DocumentError, match=r"^papers/set/corpus.jsonl cannot be unpacked: the archive is damaged"
    ):
        found.read(file)
    # The flags in the central directory; no member but the folder comes before
    flag = raw.index(b"PK\x01\x02") + 8
    flag = raw.index(b"PK\x01\x02", flag) + 8
    archive.write_bytes(raw[:flag] + b"\x01" + raw[flag + 1 :])
    os.utime(archive, ns=(2, 2))
    with pytest.raises(DocumentError, match=r"^papers/set/corpus.jsonl is encrypted"):
        found.read(file)


@pytest.mark.parametrize(
    ("place", "damage"),
    [(6, b"\x63\x00"), (8, b"\x00\x08")],
    ids=["a version of zip to come", "a name that is no UTF-8"],
)
def test_a_zip_that_cannot_be_listed_refuses_the_listing(tmp_path: Path, place: int, damage: bytes) -> None:
    """Whatever zipfile says to it."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("xx.txt", "text")
    raw = path.read_bytes().replace(b"xx.txt", b"\xff\xfe.txt")
    at = raw.index(b"PK\x01\x02") + place
    path.write_bytes(raw[:at] + damage + raw[at + 2 :])
    with pytest.raises(Refused, match="the listing is incomplete; nothing was changed"):
        ids(source(path))


def test_a_zip_that_is_none_refuses_the_listing(tmp_path: Path) -> None:
    """Half an upload is no empty corpus; no file at all is a mistake in the config."""
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(
        Refused, match="File is not a zip file; the listing is incomplete; nothing was changed"
    ):
        ids(source(tmp_path / "x.zip"))
    with pytest.raises(ConfigError, match="does not exist"):
        ids(source(tmp_path / "y.zip"))


# --- S3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server on this machine, with the bucket `library`."""
    for name, value in (
        ("ACCESS_KEY_ID", "test"),
        ("SECRET_ACCESS_KEY", "test"),
        ("DEFAULT_REGION", "eu-west-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    aws.forget()
    client = boto3.client("s3")
    client.create_bucket(Bucket="library", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    yield client
    client.close()
    for key in [item["Key"] for item in client.list_objects_v2(Bucket="library").get("Contents", [])]:
        client.delete_object(Bucket="library", Key=key)
    client.delete_bucket(Bucket="library")
    aws.forget()
    server.stop()


def put(client: Any, *keys: str, body: bytes = b"text") -> None:
    """Objects in the bucket."""
    for key in keys:
        client.put_object(Bucket="library", Key=key, Body=body)


def prefix(path: str, **settings: Any) -> Source:
    """The source `papers` below a prefix of the bucket."""
    return _opened({"kind": "s3", "name": "papers", "bucket": "library", "prefix": path, **settings})


def test_a_prefix_lists_the_objects_below_it(s3: Any) -> None:
    """Ids relative to the prefix, without folder objects, unknown types, and neighbours of a like name."""
    put(
        s3,
        "docs/",
        "docs/a.md",
        "docs/x y/\u00e9 #1.txt",
        "docs/pic.png",
        "docs/.hidden.md",
        "docs2/b.md",
        "c.md",
    )
    assert ids(prefix("docs")) == ids(prefix("docs/")) == ["papers/a.md", "papers/x y/\u00e9 #1.txt"]
    assert "papers/docs2/b.md" in ids(prefix(""))


def test_an_object_carries_etag_size_and_path_metadata(s3: Any) -> None:
    """The stamp changes with the content."""
    put(s3, "acme/2024/a.md")
    found = prefix("", path_metadata="{customer}/{year}/*", metadata={"team": "sales"})
    (file,) = found.list()
    assert file == SourceFile(
        "papers/acme/2024/a.md",
        "s3://library/acme/2024/a.md",
        4,
        "1cb251ec0d568de6a929b520c4aed8d1-4",
        "papers",
        {"customer": "acme", "year": 2024, "team": "sales"},
    )
    assert found.read(file) == b"text"


def test_every_page_of_a_listing_is_read(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand keys come at a time, here two."""
    put(s3, *(f"{number}.md" for number in range(5)))
    found = prefix("")
    calls = _with_small_pages(found, monkeypatch)
    assert len(ids(found)) == 5
    assert len(calls) == 3


def test_a_failure_in_the_middle_of_a_listing_is_an_error(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second page fails: what came before is not taken for everything."""
    put(s3, *(f"{number}.md" for number in range(5)))
    found = prefix("")

    def leave_after_first(calls: list[Any]) -> None:
        if len(calls) == 2:
            s3.delete_bucket(Bucket="empty")
            calls[-1]["Bucket"] = "empty"

    s3.create_bucket(Bucket="empty", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    _with_small_pages(found, monkeypatch, before=leave_after_first)
    with pytest.raises(NotFound, match=r"s3:ListObjectsV2 on s3://library/: does not exist"):
        ids(found)


def _with_small_pages(
    found: Source, monkeypatch: pytest.MonkeyPatch, before: Callable[[list[Any]], None] = lambda calls: None
) -> list[Any]:
    """Ask for two keys a page; returns the calls as they are made."""
    client: Any = found.client  # type: ignore[attr-defined]  # only the S3 source has one
    calls: list[Any] = []

    def smaller(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 2
        calls.append(params)
        before(calls)

    client.meta.events.register("provide-client-params.s3.ListObjectsV2", smaller)
    return calls


def test_a_bucket_that_does_not_exist_is_an_error(s3: Any) -> None:
    """With the call and the place."""
    found = _opened({"kind": "s3", "name": "papers", "bucket": "nobodys-library"})
    with pytest.raises(ServiceError, match="s3:ListObjectsV2 on s3://nobodys-library/"):
        ids(found)


def test_reading_an_object_that_is_gone_or_too_large(s3: Any) -> None:
    """Each is a failure of that document."""
    put(s3, "a.md", "b.md", body=b"x" * 2_000)
    section = {"kind": "s3", "name": "papers", "bucket": "library"}
    first, second = sorted(_opened(section).list(), key=lambda file: file.id)
    with pytest.raises(DocumentError, match=r"^papers/a.md is larger than 0.000998 MB$"):
        _opened(section, parsing={"max_file_mb": 1_047 / 1024**2}).read(first)
    s3.delete_object(Bucket="library", Key="b.md")
    with pytest.raises(DocumentError, match=r"^papers/b.md has vanished since it was listed$"):
        _opened(section).read(second)


def test_an_object_that_may_not_be_read_is_a_failure_of_that_document(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of its own or a policy on one object does not stop the others."""
    put(s3, "a.md")
    found = prefix("")
    (file,) = found.list()
    denied = ClientError(
        {
            "Error": {"Code": "AccessDenied", "Message": "Access Denied"},
            "ResponseMetadata": {"HTTPStatusCode": 403},
        },
        "GetObject",
    )

    def refuse(**_: Any) -> None:
        raise denied

    client: Any = found.client  # type: ignore[attr-defined]  # only the S3 source has one
    monkeypatch.setattr(client, "get_object", refuse)
    with pytest.raises(
        DocumentError, match=r"^papers/a.md cannot be read: s3:GetObject on s3://library/a.md: access denied"
    ):
        found.read(file)
