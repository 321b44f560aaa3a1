"""adapters/jumpstart.py: what the real SageMaker SDK makes of a catalogue, read over real HTTP."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from ragctl.adapters import aws
from ragctl.adapters.jumpstart import Catalogue
from ragctl.blueprint import Resolved, Role
from ragctl.errors import ConfigError, Refused, ServiceError
from tests.cli import in_process
from tests.deployments import Region, environment, region_at_hand, region_in
from tests.experiments import experiment
from tests.jumpstart_catalogue import (
    BUCKET,
    DRAFTED,
    EMBEDDER,
    GATED,
    GATED_BUCKET,
    OLD,
    REGION,
    REGISTRY,
    RETIRED,
    SCRIPTED,
    SOLD,
    WRITER,
    hub_document,
    objects,
)
from tests.servers.sagemaker import SageMakerServer
from tests.servers.sagemaker_things import Fate


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an S3 that holds the catalogue."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def catalogue(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public bucket of the region, and the variables that lead to it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": bucket,
    }.items():
        monkeypatch.setenv(name, value)
    aws.forget()
    s3 = aws.client("s3", experiment())
    if BUCKET not in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        for key, body in objects():
            s3.put_object(Bucket=BUCKET, Key=key, Body=body)


def resolve(role: Role, model_id: str, version: str = "*", **settings: Any) -> Resolved:
    return Catalogue(experiment(deployment={role: settings})).resolve(role, model_id, version)


def test_the_embedding_model_of_the_walk_through() -> None:
    """Image, artefact, environment, timeouts, family and needs, at the highest version the SDK can read."""
    assert resolve("embedding", EMBEDDER) == Resolved(
        EMBEDDER,
        "1.0.8",
        f"{REGISTRY}/tei:2.0.1-gpu",
        f"s3://{BUCKET}/{EMBEDDER}/packed/v1.0.8/",
        "ml.g5.2xlarge",
        "tei",
        env={"HF_MODEL_ID": "/opt/ml/model", "MAX_BATCH_TOKENS": "16384"},
        network_isolation=True,
        download_timeout=1200,
        startup_timeout=900,
        accelerators=1,
        memory_mb=16384,
    )


def test_the_text_model_of_the_walk_through() -> None:
    """Its image, instance types and examples are those of its first configuration."""
    found = resolve("generation", WRITER)
    assert (found.version, found.instance_type, found.family) == ("2.0.2", "ml.g6.12xlarge", "chat")
    assert found.image == f"{REGISTRY}/djl-inference:0.31.0-lmi"
    assert found.env["OPTION_TENSOR_PARALLEL_DEGREE"] == "4"


@pytest.mark.parametrize(
    ("version", "found"), [("1.0.7", "1.0.7"), ("1.0.*", "1.0.8"), ("1.*", "1.0.8"), ("*", "1.0.8")]
)
def test_versions(version: str, found: str) -> None:
    """An exact one, or the highest that a glob allows."""
    assert resolve("embedding", EMBEDDER, version).version == found


def test_one_type_does_not_leave_its_variables_to_the_next() -> None:
    """The SDK changes the entries of its cache; a big machine's value must not reach a small one."""
    assert resolve("embedding", EMBEDDER, instance_type="ml.g5.12xlarge").env["MAX_BATCH_TOKENS"] == "65536"
    assert resolve("embedding", EMBEDDER, instance_type="ml.g5.2xlarge").env["MAX_BATCH_TOKENS"] == "16384"


def test_a_volume_only_where_the_instance_takes_one() -> None:
    """g5 and g4dn have disks of their own."""
    assert resolve("embedding", EMBEDDER, instance_type="ml.g4dn.12xlarge").volume_gb is None


def test_an_old_container() -> None:
    """Told by its image, where the example is a bare text; its artefact is one archive."""
    found = resolve("embedding", OLD, instance_type="ml.m5.xlarge")
    assert (found.family, found.artefact) == ("huggingface", f"s3://{BUCKET}/packed/pebble.tar.gz")


def test_a_gated_model() -> None:
    """Where its license is to be read, and its weights in the bucket that needs the acceptance."""
    found = resolve("generation", GATED)
    assert found.eula == f"https://{BUCKET}.s3.{REGION}.amazonaws.com/eula/fable.txt"
    assert found.artefact.startswith(f"s3://{GATED_BUCKET}/")
    assert found.family == "text"


def test_a_deprecated_model() -> None:
    """Said with the catalogue's reason."""
    with pytest.raises(Refused) as caught:
        resolve("generation", RETIRED)
    assert caught.value.message == f"generation.model: {RETIRED} is deprecated: retired in spring"


def test_an_unknown_model() -> None:
    """With the nearest name."""
    with pytest.raises(ConfigError) as caught:
        resolve("embedding", "huggingface-textembedding-gte-qwen2-7b")
    assert caught.value.message == (
        "embedding.model: JumpStart in eu-west-1 has no model huggingface-textembedding-gte-qwen2-7b"
    )
    assert caught.value.hint == f"did you mean {EMBEDDER}?"


def test_a_version_that_there_is_not() -> None:
    """With those that there are."""
    with pytest.raises(ConfigError) as caught:
        resolve("embedding", EMBEDDER, "7.*")
    assert caught.value.message == f"embedding.model_version: {EMBEDDER} has no version 7.*"
    assert caught.value.hint == "it has 1.0.7, 1.0.8, 9.0.0 (for a newer sagemaker-core)"


def test_a_version_for_a_newer_sdk() -> None:
    """Said as such: the way out is an upgrade."""
    with pytest.raises(ConfigError) as caught:
        resolve("embedding", EMBEDDER, "9.0.0")
    assert caught.value.message == (
        f"embedding.model_version: {EMBEDDER} 9.0.0 needs version 9.9.9 of the SageMaker SDK"
    )


def test_an_instance_type_that_does_not_do() -> None:
    """With those that do."""
    with pytest.raises(ConfigError) as caught:
        resolve("embedding", EMBEDDER, instance_type="ml.t2.medium")
    assert caught.value.message == (
        f"deployment.embedding.instance_type: {EMBEDDER} does not run on ml.t2.medium"
    )
    assert caught.value.hint == "it runs on ml.g5.2xlarge, ml.g5.12xlarge, ml.g4dn.12xlarge"


def test_a_model_that_is_sold() -> None:
    """Marketplace models need a subscription."""
    with pytest.raises(ConfigError, match=f"{SOLD} is sold on AWS Marketplace"):
        resolve("generation", SOLD)


def test_a_model_that_needs_repacking() -> None:
    """A script has to be put into its artefact, which only the SDK's own deployment does."""
    with pytest.raises(ConfigError, match="needs a script packed into its artefact"):
        resolve("embedding", SCRIPTED)


def test_a_configuration_that_needs_a_second_model() -> None:
    """Refused with the others to choose from; one of those resolves."""
    with pytest.raises(ConfigError, match="configuration fast wants data of a second model") as caught:
        resolve("generation", DRAFTED)
    assert caught.value.hint == "choose another under deployment.generation.inference_config: fast, plain"
    assert resolve("generation", DRAFTED, inference_config="plain").family == "chat"


def test_a_configuration_that_there_is_not() -> None:
    """With those that there are."""
    with pytest.raises(ConfigError) as caught:
        resolve("generation", WRITER, inference_config="turbo")
    assert caught.value.hint == "it has lmi"


@pytest.mark.parametrize("kind", ["Model", "ModelReference"])
def test_a_model_of_a_private_hub(kind: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the hub's document; a reference to a public model needs the hub's leave to read its weights."""
    with SageMakerServer() as server:
        server.hub[kind, "house-embedder"] = hub_document()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", server.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", bucket)
        aws.forget()
        experiment_ = experiment(deployment={"hub": "house"})
        found = Catalogue(experiment_).resolve("embedding", "house-embedder", "1.0.0")
        assert (server.unexpected, server.broken) == ([], [])
    assert found.image == f"{REGISTRY}/tei:2.0.1-gpu"
    assert found.artefact == "s3://house/embedder/"
    assert (found.version, found.instance_type, found.family) == ("1.0.0", "ml.g5.2xlarge", "tei")
    assert found.env == {"HF_MODEL_ID": "/opt/ml/model"}
    reference = (
        f"arn:aws:sagemaker:{REGION}:123456789012:hub-content/house/ModelReference/house-embedder/1.0.0"
    )
    assert found.hub_content == (reference if kind == "ModelReference" else None)


def test_a_model_that_the_hub_does_not_have(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said with the hub's name."""
    with SageMakerServer() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", server.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", bucket)
        aws.forget()
        with pytest.raises(ConfigError, match=r"Cannot get details for nothing in Hub .*hub/house\."):
            Catalogue(experiment(deployment={"hub": "house"})).resolve("embedding", "nothing", "1.0.0")


def test_a_catalogue_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours, not one of the SDK's."""
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    aws.forget()
    with pytest.raises(ServiceError, match="the JumpStart catalogue of eu-north-1"):
        resolve("embedding", EMBEDDER)


# --- the whole command -----------------------------------------------------------------------------------


@pytest.fixture
def deployed_to(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    """A region that a `ragctl` process finds by its environment."""
    with region_in(tmp_path / "state") as region:
        for name, value in environment(region.control.url, region.runtime.url).items():
            monkeypatch.setenv(name, value)
        yield region


def ragctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    return subprocess.run([sys.executable, "-m", "ragctl", *arguments], capture_output=True, text=True)


def config(tmp_path: Path, **sections: Any) -> str:
    """An experiment file."""
    (tmp_path / "docs").mkdir(exist_ok=True)
    document = {
        "name": "test",
        "sources": [{"kind": "local", "name": "docs", "path": "docs"}],
        "state": "state",
        "deployment": {"role_arn": "arn:aws:iam::123456789012:role/models", "expires_after": "8h"},
        **sections,
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def test_up_and_down_with_the_real_sdk(tmp_path: Path, deployed_to: Region) -> None:
    """Two models from the catalogue to the record, the same again, and all of it gone."""
    path = config(
        tmp_path,
        embedding={"kind": "sagemaker", "model": EMBEDDER, "model_version": "1.*"},
        generation={"kind": "sagemaker", "model": WRITER},
    )
    first = ragctl("deploy-models", path, "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["schema"] == "ragctl.deploy-models/1"
    assert {resource["action"] for resource in document["resources"]} == {"created"}
    assert document["models"]["embedding"]["instance_type"] == "ml.g5.2xlarge"
    assert len(deployed_to.control.existing()) == 6
    again = json.loads(ragctl("deploy-models", path, "--json").stdout)
    assert {resource["action"] for resource in again["resources"]} == {"kept"}
    deployed_to.teardown(deployed_to.experiment())
    assert deployed_to.control.existing() == []


def test_a_license_on_the_command_line(tmp_path: Path, deployed_to: Region) -> None:
    """Exit 6 with the link; with --accept-eula the model is made, its acceptance in the request."""
    path = config(tmp_path, generation={"kind": "sagemaker", "model": GATED})
    refused = ragctl("deploy-models", path)
    assert refused.returncode == 6
    assert f"https://{BUCKET}.s3.{REGION}.amazonaws.com/eula/fable.txt" in refused.stderr
    assert deployed_to.control.existing() == []
    assert ragctl("deploy-models", path, "--accept-eula").returncode == 0
    (model,) = [request for name, request in deployed_to.control.requests if name == "CreateModel"]
    source = model["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]
    assert source["ModelAccessConfig"] == {"AcceptEula": True}


@pytest.mark.parametrize(
    ("section", "settings", "status", "error", "hint"),
    [
        (
            {"model": "huggingface-textembedding-gte-qwen2-7b"},
            {},
            2,
            "embedding.model: JumpStart in eu-west-1 has no model huggingface-textembedding-gte-qwen2-7b",
            f"did you mean {EMBEDDER}?",
        ),
        (
            {"model": EMBEDDER, "model_version": "7.*"},
            {},
            2,
            f"embedding.model_version: {EMBEDDER} has no version 7.*",
            "it has 1.0.7, 1.0.8, 9.0.0 (for a newer sagemaker-core)",
        ),
        (
            {"model": EMBEDDER},
            {"instance_type": "ml.t2.medium"},
            2,
            f"deployment.embedding.instance_type: {EMBEDDER} does not run on ml.t2.medium",
            "it runs on ml.g5.2xlarge, ml.g5.12xlarge, ml.g4dn.12xlarge",
        ),
        (
            {"model": RETIRED, "family": "tei"},
            {},
            6,
            f"embedding.model: {RETIRED} is deprecated: retired in spring",
            "choose another model or version",
        ),
        (
            {"model": EMBEDDER},
            {"instance_type": "ml.g5.12xlarge"},
            8,
            '1 x ml.g5.12xlarge needed, and the quota "ml.g5.12xlarge for endpoint usage" is 0',
            "ask for more in Service Quotas, service Amazon SageMaker, or choose another instance type",
        ),
    ],
    ids=["unknown-model", "bad-version", "unsupported-type", "deprecated", "quota-of-nothing"],
)
def test_what_cannot_be_deployed_is_said_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: dict[str, str],
    settings: dict[str, str],
    status: int,
    error: str,
    hint: str,
) -> None:
    """The exact words, the exit status, and nothing in the account, a dry run included."""
    role = {"role_arn": "arn:aws:iam::123456789012:role/models"}
    path = config(
        tmp_path, embedding={"kind": "sagemaker", **section}, deployment={**role, "embedding": settings}
    )
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        region.control.quotas["ml.g5.12xlarge"] = 0
        for options in ((), ("--dry-run",)):
            ended = in_process("deploy-models", path, *options)
            assert (ended.status, ended.out) == (status, "")
            assert ended.err.endswith(f"ragctl: error: {error}\n  hint: {hint}\n")
        assert region.control.existing() == []
        assert [
            name for name, _ in region.control.requests if not name.startswith(("Describe", "List"))
        ] == []


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        (
            Fate("Failed", reason="Unable to provision requested ML compute capacity."),
            "endpoint ragctl-test-embedding is Failed: Unable to provision requested ML compute capacity.",
        ),
        (Fate(after=None), "endpoint ragctl-test-embedding is still Creating after 1s"),
    ],
)
def test_an_endpoint_that_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: Fate, said: str
) -> None:
    """Its states are shown while it is waited for; then exit 8 with the reason, and nothing of it is left."""
    role = {"role_arn": "arn:aws:iam::123456789012:role/models", "timeout": "1s"}
    path = config(tmp_path, embedding={"kind": "sagemaker", "model": EMBEDDER}, deployment=role)
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        region.control.fates["test"] = fate
        ended = in_process("deploy-models", path)
        assert (ended.status, ended.out) == (8, "")
        assert f"ragctl: error: {said}\n" in ended.err
        assert "min  endpoint ragctl-test-embedding: Creating\n" in ended.err
        assert region.control.existing() == []


def test_interrupted_on_the_command_line(tmp_path: Path, deployed_to: Region) -> None:
    """Ctrl-C ends with 130, and what was made by then is gone."""
    deployed_to.control.fates["test"] = Fate(after=None)
    path = config(tmp_path, embedding={"kind": "sagemaker", "model": EMBEDDER})
    process = subprocess.Popen(
        [sys.executable, "-m", "ragctl", "deploy-models", path], stderr=subprocess.PIPE, text=True
    )
    waiting = threading.Event()
    made = threading.Event()

    def note(operation: str) -> None:
        if operation == "CreateEndpoint":
            made.set()
        if operation == "DescribeEndpoint" and made.is_set():
            waiting.set()

    deployed_to.control.after_call = note
    assert waiting.wait(60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert deployed_to.control.existing() == []
