"""doctor: one honest line for each thing that an experiment needs, and nothing changed by looking."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ragctl import doctor
from ragctl.doctor import Finding, examine
from ragctl.ingest import IngestOptions, Progress, ingest
from ragctl.loading import load
from ragctl.state import open_state
from tests.cli import experiment, ragctl, write_docs
from tests.servers.account import ACCOUNT, CALLER, ROLE, AccountServer
from tests.servers.bedrock import TITAN, WRITER, BedrockServer
from tests.servers.openai_server import Behaviour, OpenAIServer
from tests.servers.s3vectors import S3VectorsServer
from tests.servers.sagemaker import SageMakerServer

ROOT = Path(__file__).parents[1]


def findings(path: Path, *overrides: str) -> dict[str, Finding]:
    """What doctor finds, by check."""
    return {finding.check: finding for finding in examine(load(path, overrides), path)}


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# --- on a laptop -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_docs(tmp_path, {"a.md": "The warranty lasts three years."})
    experiment(tmp_path, ingest={"workers": 1})
    return tmp_path


def fill(path: Path, *overrides: str) -> None:
    loaded = load(path, overrides)
    ingest(loaded, open_state(loaded), IngestOptions(), Progress())


def test_a_healthy_experiment_is_all_ok(folder: Path) -> None:
    """One line each, exit 0, nothing that AWS has to do with, and nothing is made."""
    path = folder / "experiment.yaml"
    fill(path)
    before = tree(folder)
    ended = ragctl("doctor", path)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"ok       experiment file: {path}",
        "ok       packages: all that the experiment uses are installed",
        "ok       source docs: 1 files",
        f"ok       state: {folder}/state",
        f"ok       runs: {folder}/runs",
        "ok       index: test",
    ]
    assert tree(folder) == before


def test_what_is_missing_is_exit_8(folder: Path) -> None:
    """An index that is not there yet is told with the command that makes it; looking makes nothing."""
    before = tree(folder)
    ended = ragctl("doctor", folder / "experiment.yaml", "--json")
    assert ended.status == 8
    assert ended.json["schema"] == "ragctl.doctor/1"
    (missing,) = [check for check in ended.json["checks"] if check["status"] != "ok"]
    assert missing == {
        "check": "index",
        "status": "missing",
        "detail": "there is no index test (make and fill it: ragctl ingest CONFIG)",
    }
    assert "ragctl: error: 1 of 6 checks miss something: index" in ended.err
    assert tree(folder) == before


def test_an_index_that_differs_is_told_with_its_differences(folder: Path) -> None:
    """On one line, as exit 6 of the other commands lists them."""
    path = folder / "experiment.yaml"
    fill(path)
    found = findings(path, "embedding.dimension=128")["index"]
    assert found.status == "missing"
    assert found.detail.startswith("index test was made with other settings: ")
    assert "dimension: the index has 256, the experiment asks for 128" in found.detail


def test_a_lost_ledger_is_told_with_what_makes_it_anew(folder: Path) -> None:
    """Every ingest would be refused, so the index is not ok, whether or not its settings can be compared."""
    path = folder / "experiment.yaml"
    fill(path)
    (folder / "state" / "test" / "ledger.sqlite").unlink()
    found = findings(path)["index"]
    assert found.status == "missing"
    assert found.detail.startswith("index test holds chunks, but there is no whole ledger of it (")
    assert found.detail.endswith("make the ledger anew: ragctl ledger rebuild CONFIG)")


def test_every_fault_is_told_in_one_run(folder: Path) -> None:
    """A folder that is not there, a place that cannot be written, a package that is not installed."""
    path = folder / "experiment.yaml"
    (folder / "blocked").write_text("a file, no folder")
    found = findings(
        path,
        f"sources.0.path={folder / 'nowhere'}",
        f"state={folder / 'blocked' / 'state'}",
        f"runs={folder / 'blocked' / 'runs'}",
    )
    assert found["experiment file"].status == found["source docs"].status == "missing"
    assert found["source docs"].detail == f"sources.docs: {folder / 'nowhere'} does not exist"
    assert found["state"] == Finding("state", "missing", f"{folder / 'blocked'} cannot be written")
    assert found["runs"].status == "missing"


def test_a_missing_package_is_told_with_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command would tell it, before it is run."""
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    setting = 'embedding={"kind": "fastembed", "path": "nowhere"}'
    found = findings(folder / "experiment.yaml", setting)
    assert found["packages"] == Finding(
        "packages",
        "missing",
        'embedding: kind fastembed needs an optional package (install it with: pip install "ragctl[fastembed]")',
    )
    assert found["embedding"].status == "missing"


def test_an_empty_source_is_unknown(folder: Path) -> None:
    """It may be meant; it is told all the same."""
    (folder / "docs" / "a.md").unlink()
    found = findings(folder / "experiment.yaml")["source docs"]
    assert found == Finding("source docs", "unknown", "lists no file that ragctl reads")


def test_indexes_of_tenants_are_all_looked_at(tmp_path: Path) -> None:
    """None is missing, unless there is no tenant at all."""
    write_docs(tmp_path, {"acme/a.md": "A.", "globex/g.md": "G."})
    source = {"kind": "local", "name": "docs", "path": "docs", "path_metadata": "{customer}/*"}
    path = experiment(
        tmp_path, sources=[source], tenancy={"key": "customer", "layout": "index"}, ingest={"workers": 1}
    )
    assert findings(path)["index"].detail == "no tenant has an index yet (ragctl ingest CONFIG)"
    fill(path)
    assert findings(path)["index"] == Finding("index", "ok", "test.acme, test.globex")


@pytest.mark.parametrize(
    ("model", "key", "status", "words"),
    [
        ("words", "sesame", "unknown", "embedding.base_url: the server answers 501"),
        ("words", "sesame", "missing", "embedding.base_url: nobody answers"),
    ],
)
def test_a_model_server_is_asked_for_its_models(
    folder: Path, model: str, key: str, status: str, words: str
) -> None:
    """One that lists none is unknown, one that does not answer is missing; the key is not told."""
    with OpenAIServer(Behaviour(api_key=key)) as server:
        base = f"{server.url}/v1" if status == "unknown" else "http://127.0.0.1:9/v1"
        section = {"kind": "openai", "base_url": base, "model": model, "api_key": key}
        found = findings(folder / "experiment.yaml", f"embedding={json.dumps(section)}")
    assert (found["embedding"].status, key in found["embedding"].detail) == (status, False)
    assert found["embedding"].detail.startswith(words)


def test_tracking_is_asked(folder: Path) -> None:
    """A file's folder is writable, or MLflow answers, or it is missing."""
    path = folder / "experiment.yaml"
    assert findings(path, f"tracking.uri=sqlite:///{folder}/mlflow.db")["tracking"].status == "ok"
    assert not (folder / "mlflow.db").exists()
    found = findings(path, "tracking.uri=http://user:hunter2@127.0.0.1:9")["tracking"]
    assert found.status == "missing"
    assert "hunter2" not in found.detail


def test_the_sdk_floor_is_that_of_the_package() -> None:
    """One number in two places."""
    floor = ".".join(map(str, doctor.SDK_FLOOR))
    assert f'"boto3>={floor}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_an_old_sdk_is_told(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> None:
    """With what to install."""
    monkeypatch.setattr(doctor, "version", lambda name: "1.39.17")
    found = cloud.findings()["AWS SDK"]
    assert found == Finding("AWS SDK", "missing", 'boto3 1.39.17 is too old (pip install "boto3>=1.44.5")')


# --- on AWS ----------------------------------------------------------------------------------------------


@dataclass
class Cloud:
    """An experiment that is all on AWS, and the servers that stand for it."""

    path: Path
    account: AccountServer
    vectors: S3VectorsServer
    bedrock: BedrockServer
    sagemaker: SageMakerServer
    s3: Any
    bucket: str

    def findings(self, *overrides: str) -> dict[str, Finding]:
        return findings(self.path, *overrides)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def cloud(moto_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    s3 = boto3.client("s3", endpoint_url=moto_url, region_name="eu-west-1")
    bucket = f"c-{tmp_path.name.lower().replace('_', '-')}"[:60].strip("-")
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.put_object(Bucket=bucket, Key="docs/a.md", Body=b"The warranty lasts three years.")
    with ExitStack() as stack:
        account = stack.enter_context(AccountServer())
        vectors = stack.enter_context(S3VectorsServer())
        bedrock = stack.enter_context(BedrockServer())
        sagemaker = stack.enter_context(SageMakerServer())
        monkeypatch.setenv("AWS_ENDPOINT_URL_IAM", account.url)
        endpoints: Mapping[str, str] = {
            "s3": moto_url,
            "s3vectors": vectors.url,
            "bedrock": bedrock.url,
            "bedrock_runtime": bedrock.url,
            "sagemaker": sagemaker.url,
            "sts": account.url,
        }
        path = experiment(
            tmp_path,
            sources=[{"kind": "s3", "name": "docs", "bucket": bucket, "prefix": "docs"}],
            store={"kind": "s3vectors", "bucket": "papers", "index": "test"},
            embedding={"kind": "bedrock", "model": TITAN, "dimension": 256},
            generation={"kind": "bedrock", "model": f"eu.{WRITER}"},
            state=f"s3://{bucket}/state",
            ingest={"workers": 1},
            aws={"region": "eu-west-1", "endpoints": endpoints},
        )
        assert ragctl("create-index", path).status == 0
        yield Cloud(path, account, vectors, bedrock, sagemaker, s3, bucket)
        for server in (account, vectors, bedrock, sagemaker):
            assert (server.unexpected, server.broken) == ([], [])


def test_everything_on_aws_is_ok(cloud: Cloud) -> None:
    """Credentials, bucket, state, models, index and what each command may do; nothing is left behind."""
    found = cloud.findings()
    assert [finding for finding in found.values() if finding.status != "ok"] == []
    assert found["credentials"].detail == f"account {ACCOUNT}, {CALLER}"
    assert found["embedding"].detail == f"model {TITAN} may be used"
    assert found["generation"].detail == f"model {WRITER} may be used"
    assert found["source docs"].detail == "1 files"
    assert list(found)[-3:] == [
        "permissions of create-index",
        "permissions of ingest",
        "permissions of query",
    ]
    keys = [item["Key"] for item in cloud.s3.list_objects_v2(Bucket=cloud.bucket)["Contents"]]
    assert keys == ["docs/a.md"]


def test_a_right_that_is_missing_is_named_with_its_resource(cloud: Cloud) -> None:
    """IAM's simulator is asked for the role behind the session, by its whole ARN."""
    cloud.account.denied = {"s3vectors:PutVectors", "s3:DeleteObject"}
    found = cloud.findings()
    index = f"arn:aws:s3vectors:eu-west-1:{ACCOUNT}:bucket/papers/index/test"
    assert found["permissions of ingest"] == Finding(
        "permissions of ingest",
        "missing",
        f"not allowed: s3vectors:PutVectors on {index}, "
        f"s3:DeleteObject on arn:aws:s3:::{cloud.bucket}/state/ragctl-doctor",
    )
    assert found["permissions of query"].status == "ok"
    assert {principal for principal, _, _ in cloud.account.asked} == {ROLE}
    assert ("bedrock:InvokeModel", f"arn:aws:bedrock:eu-west-1::foundation-model/{TITAN}") in {
        (action, resource) for _, action, resource in cloud.account.asked
    }


def test_permissions_that_nobody_may_ask_for_are_unknown(cloud: Cloud) -> None:
    """Exit 0: nothing is known to be missing."""
    cloud.account.refuses = {"SimulatePrincipalPolicy": "AccessDenied"}
    found = cloud.findings()["permissions of query"]
    assert found == Finding(
        "permissions of query",
        "unknown",
        f"IAM may not be asked (allow iam:SimulatePrincipalPolicy on {ROLE}); see docs/iam.md",
    )
    assert ragctl("doctor", cloud.path).status == 0


def test_without_credentials_the_rest_is_not_asked(cloud: Cloud) -> None:
    """One line says what is wrong; the others say why they do not know."""
    cloud.account.refuses = {"GetCallerIdentity": "ExpiredToken"}
    found = cloud.findings()
    assert found["credentials"].status == "missing"
    assert "sts:GetCallerIdentity on the caller: the credentials are not accepted (ExpiredToken)" in (
        found["credentials"].detail
    )
    assert {finding.detail for finding in found.values() if finding.status == "unknown"} == {
        "not looked at without credentials"
    }
    assert found["packages"].status == "ok"


def test_a_denied_call_names_action_and_resource(cloud: Cloud) -> None:
    """The index may not be looked at: the line says which right is missing on what."""
    cloud.vectors.denied = {"GetIndex"}
    found = cloud.findings()["index"]
    assert found.status == "missing"
    assert "allow s3vectors:GetIndex on index papers/test" in found.detail


@pytest.mark.parametrize(
    ("setting", "check", "words"),
    [
        ("store.index=other", "index", "there is no index other"),
        ("sources.0.bucket=nobody-has-this", "source docs", "s3:ListObjectsV2"),
        ("state=s3://nobody-has-this/state", "state", "s3:GetObject on s3://nobody-has-this/state/doctor"),
        ('embedding={"kind": "sagemaker", "endpoint": "gone", "family": "tei"}', "embedding", "there is no endpoint gone"),
        ('generation={"kind": "sagemaker", "family": "chat"}', "generation", "no model is deployed"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_missing(cloud: Cloud, setting: str, check: str, words: str) -> None:
    """Index, bucket, state location, endpoint: each by name."""
    found = cloud.findings(setting)[check]
    assert found.status == "missing"
    assert words in found.detail


def test_a_model_without_access_is_missing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of Bedrock."""
    answer = {
        "modelId": TITAN,
        "agreementAvailability": {"status": "NOT_AVAILABLE"},
        "authorizationStatus": "AUTHORIZED",
        "entitlementAvailability": "AVAILABLE",
        "regionAvailability": "AVAILABLE",
    }
    monkeypatch.setattr(cloud.bedrock, "_availability", lambda request: answer)
    found = cloud.findings()["embedding"]
    assert found == Finding(
        "embedding",
        "missing",
        f"model {TITAN}: its agreement is not accepted (see model access in the Bedrock console)",
    )
