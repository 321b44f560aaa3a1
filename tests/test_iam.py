"""docs/iam.md: what the table says, and the table is what the commands do, no less and no more."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from moto.server import ThreadedMotoServer

from ragctl import cli, iam
from ragctl.adapters.aws import PERMISSIONS
from ragctl.errors import PermissionDenied
from ragctl.loading import load
from tests.cli import experiment
from tests.deployments import SCENARIOS, region_at_hand
from tests.experiments import experiment as in_memory
from tests.servers.bedrock import RERANKER, TITAN, WRITER, BedrockServer
from tests.servers.model_check import service_model
from tests.servers.s3vectors import S3VectorsServer

ROOT = Path(__file__).parents[1]
EVERY_ACTION = {action for right in iam.RIGHTS for action in right.actions}
# What IAM asks for besides the operation that is called (Service Authorization Reference; S3 Vectors user guide).
COMES_ALONG = {
    "s3vectors:TagResource",  # CreateIndex and CreateVectorBucket with tags
    "bedrock:InvokeModel",  # Rerank
    "s3:ListBucket",  # tells a file that is absent from one that may not be read
    "iam:PassRole",
    "iam:CreateServiceLinkedRole",
    "kms:GenerateDataKey",
    "kms:Decrypt",
    "bedrock:ApplyGuardrail",
    "application-autoscaling:TagResource",
    "cloudwatch:TagResource",
    "sagemaker:DescribeHubContent",  # by JumpStart's SDK
}


def test_the_page_is_what_the_table_gives() -> None:
    """To make it anew: python -m ragctl.iam > docs/iam.md"""
    assert (ROOT / "docs" / "iam.md").read_text(encoding="utf-8") == iam.page()


def test_every_command_has_its_chapter() -> None:
    """Those that call AWS at all are commands of the program."""
    commands = {name for info in cli.app.registered_commands if (name := info.name)} | {"ledger rebuild"}
    assert set(iam.COMMANDS) <= commands


def test_policies_are_well_formed() -> None:
    """Actions name their service, statement names are unique, and no placeholder is left."""
    for action in EVERY_ACTION:
        assert re.fullmatch(r"[a-z0-9-]+:[A-Z][A-Za-z0-9]+", action)
    blocks = re.findall(r"```json\n(.*?)```", iam.page(), re.DOTALL)
    assert len(blocks) == len(iam.COMMANDS)
    for block in blocks:
        statements = json.loads(block)["Statement"]
        names = [statement["Sid"] for statement in statements]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[A-Za-z0-9]+", name) for name in names)
        assert "{" not in json.dumps([statement["Resource"] for statement in statements])


WHERE = {"partition": "aws-cn", "region": "cn-north-1", "account": "123456789012"}
VECTORS = {"kind": "s3vectors", "bucket": "papers", "index": "docs"}
BY_TENANT = {
    "tenancy": {"key": "c", "layout": "index"},
    "sources": [
        {"kind": "s3", "name": "docs", "bucket": "files", "prefix": "in/", "metadata": {"c": "acme"}}
    ],
}


def resources_of(command: str, action: str, **sections: Any) -> list[str]:
    experiment = in_memory(**sections)
    rights = [right for right in iam.needed(experiment, command) if action in right.actions]
    return [arn for right in rights for arn in iam.resources(right, experiment, WHERE)]


@pytest.mark.parametrize(
    ("sections", "action", "arns"),
    [
        ({}, "s3vectors:PutVectors", []),
        ({"store": VECTORS}, "s3vectors:PutVectors", ["bucket/papers/index/docs"]),
        (
            {"store": VECTORS, "indexes": {"fine": {"chunking": {"size": 99}}}},
            "s3vectors:PutVectors",
            ["bucket/papers/index/docs-ragctl-doctor"],
        ),
        (
            {"store": VECTORS, **BY_TENANT},
            "s3vectors:PutVectors",
            ["bucket/papers/index/docs.ragctl-doctor"],
        ),
        ({"state": "s3://state"}, "s3:PutObject", ["state/ragctl-doctor"]),
        ({"state": "s3://state/of/mine/"}, "s3:PutObject", ["state/of/mine/ragctl-doctor"]),
        ({"cache": {"path": "s3://cache/x"}}, "s3:PutObject", ["cache/x/ragctl-doctor"]),
        (BY_TENANT, "s3:GetObject", ["files/in/ragctl-doctor"]),
        (
            {"embedding": {"kind": "sagemaker", "endpoint": "mine", "family": "tei"}},
            "sagemaker:InvokeEndpoint",
            ["endpoint/mine"],
        ),
        ({"embedding": {"kind": "sagemaker", "model": "from-the-record"}}, "sagemaker:InvokeEndpoint", []),
        (
            {"embedding": {"kind": "bedrock", "model": "eu.cohere.embed-v4:0"}},
            "bedrock:InvokeModel",
            ["123456789012:inference-profile/eu.cohere.embed-v4:0"],
        ),
    ],
)
def test_resources_are_those_that_the_experiment_names(
    sections: dict[str, Any], action: str, arns: list[str]
) -> None:
    """In its partition; a name is made up where a right is about all below a prefix, and left out where none is known."""
    found = resources_of("ingest", action, **sections)
    assert all(arn.startswith("arn:aws-cn:") for arn in found)
    assert [arn.endswith(end) for arn, end in zip(found, arns, strict=True)] == [True] * len(arns)


def test_models_that_deploy_models_makes_need_rights_of_their_own() -> None:
    """Only where the experiment names a JumpStart model; the role to pass is the one of the config."""
    role = "arn:aws:iam::123456789012:role/models"
    section = {"kind": "sagemaker", "model": "a-model"}
    assert resources_of(
        "deploy-models", "iam:PassRole", embedding=section, deployment={"role_arn": role}
    ) == [role]
    named = {"kind": "sagemaker", "endpoint": "mine", "family": "tei"}
    assert iam.needed(in_memory(embedding=named), "deploy-models") == []


# --- every call in the code has its line in the table ----------------------------------------------------


def test_every_call_is_in_the_table() -> None:
    """All that the code names as an action is there, whatever command it belongs to."""
    called = {PERMISSIONS.get(action, action) for action in _actions_in_code()}
    assert len(called) > 40
    assert called - EVERY_ACTION == set()


def test_the_table_has_nothing_that_is_never_called() -> None:
    """A right that nobody needs is no least right."""
    called = {PERMISSIONS.get(action, action) for action in _actions_in_code()} | COMES_ALONG
    spare = {action for action in EVERY_ACTION - called if not action.startswith("sagemaker-mlflow:")}
    assert spare == set()


def _actions_in_code() -> Iterator[str]:
    """Every action that the code names: as text, or as text with a kind of SageMaker's things in it."""
    vectors = set(service_model("s3vectors").operation_names)
    for path in sorted((ROOT / "ragctl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.name.startswith("s3vectors") and isinstance(node, ast.Constant) and node.value in vectors:
                yield f"s3vectors:{node.value!s}"
            if isinstance(node, ast.Call) and node.args:
                yield from _actions_of(_name(node.func), node.args[0])


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _actions_of(function: str, argument: ast.expr) -> Iterator[str]:
    if function == "_errors" and isinstance(argument, ast.Constant):
        yield f"sagemaker:{argument.value!s}"
    elif function == "aws_errors" and isinstance(argument, ast.Constant):
        if ":" in str(argument.value):
            yield str(argument.value)
    elif function == "aws_errors" and isinstance(argument, ast.JoinedStr):
        parts = (str(part.value) if isinstance(part, ast.Constant) else "*" for part in argument.values)
        template = "".join(parts)
        if template != "sagemaker:*":  # its callers name the operation: _errors
            for kind in ("Model", "EndpointConfig", "Endpoint", "InferenceComponent"):
                yield template.replace("*", kind)


# --- every command does what its chapter says ------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def cloud(bucket_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """An experiment that is all on AWS, and the servers that stand for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    s3 = boto3.client("s3", endpoint_url=bucket_server, region_name="eu-west-1")
    name = f"corpus-{tmp_path.name.lower().replace('_', '-')}"[:60].strip("-")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    s3.put_object(Bucket=name, Key="docs/a.md", Body=b"The warranty lasts three years.")
    cached = f"cached-{name}"[:60].strip("-")
    s3.create_bucket(Bucket=cached, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with S3VectorsServer() as vectors, BedrockServer() as bedrock:
        path = experiment(
            tmp_path,
            sources=[{"kind": "s3", "name": "docs", "bucket": name, "prefix": "docs"}],
            store={"kind": "s3vectors", "bucket": "papers", "index": "test"},
            embedding={"kind": "bedrock", "model": TITAN, "dimension": 256},
            reranking={"kind": "bedrock", "model": RERANKER},
            generation={"kind": "bedrock", "model": WRITER},
            state=f"s3://{name}/state",
            cache={"path": f"s3://{cached}/vectors"},
            ingest={"workers": 1},
            aws={
                "region": "eu-west-1",
                "endpoints": {
                    "s3": bucket_server,
                    "s3vectors": vectors.url,
                    "bedrock": bedrock.url,
                    "bedrock_runtime": bedrock.url,
                    "bedrock_agent_runtime": bedrock.url,
                },
            },
        )
        yield Cloud(path, vectors, monkeypatch)


class Cloud:
    """Runs commands in this process, and knows what they called."""

    def __init__(self, path: Path, vectors: S3VectorsServer, patch: pytest.MonkeyPatch) -> None:
        self.path, self.vectors = path, vectors
        self.calls: set[str] = set()
        self.on_buckets: set[tuple[str, str]] = set()  # of S3: action, bucket
        call = BaseClient._make_api_call

        def recorded(client: Any, operation: str, request: Any) -> Any:
            service = client.meta.service_model.service_id.hyphenize()
            action = f"{service.removesuffix('-agent-runtime').removesuffix('-runtime')}:{operation}"
            self.calls.add(PERMISSIONS.get(action, action))
            if "Bucket" in request:
                self.on_buckets.add((PERMISSIONS.get(action, action), request["Bucket"]))
            return call(client, operation, request)

        patch.setattr(BaseClient, "_make_api_call", recorded)

    def run(self, command: str, *arguments: str) -> set[str]:
        """The actions that one command needed."""
        self.calls.clear()
        self.on_buckets.clear()
        cli.app([*command.split(), str(self.path), *arguments], standalone_mode=False)
        return set(self.calls)

    def always(self, command: str) -> set[str]:
        rights = iam.needed(load(self.path), command)
        return {action for right in rights for action in right.actions}

    def ever(self, command: str) -> set[str]:
        return {action for right in iam.RIGHTS if command in right.commands for action in right.actions}


USES = [
    ("create-index", ()),
    ("plan", ()),
    ("ingest", ()),
    ("query", ("How long is the warranty?",)),
    ("verify", ("--full",)),
    ("ledger rebuild", ()),
    ("failures", ()),
    ("status", ()),
    ("teardown", ("--index", "--yes")),
]


def test_commands_call_what_their_chapter_says(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    """No call that is not in the table; and what is always needed is called, or comes along with what is."""
    for command, arguments in USES:
        called = cloud.run(command, *arguments)
        assert called - cloud.ever(command) == set(), command
        idle = cloud.always(command) - called - COMES_ALONG
        # An ingest into an empty index has nothing to look up or to delete, and a query by --json streams nothing.
        assert idle <= {"s3vectors:DeleteVectors", "s3vectors:GetVectors", "s3:DeleteObject"}, command


def test_each_bucket_meets_what_its_part_of_the_table_says(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache is only read and added to, until teardown --state lists and deletes what is in it."""
    loaded = load(cloud.path)
    assert loaded.cache is not None
    buckets = {"state: s3": loaded.state.split("/")[2], "cache: s3": loaded.cache.path.split("/")[2]}
    for command, arguments in (
        ("ingest", ()),
        ("plan", ()),
        ("teardown", ("--all", "--yes")),
        ("teardown", ("--state", "--yes")),
    ):
        cloud.run(command, *arguments)
        for part, bucket in buckets.items():
            said = {
                action
                for right in iam.RIGHTS
                if right.part == part and command in right.commands
                for action in right.actions
            }
            # In the same bucket
            sources = {"s3:ListBucket", "s3:GetObject"} if part == "state: s3" else set()
            assert {a for a, where in cloud.on_buckets if where == bucket} <= said | sources, (command, part)
    assert {(a, buckets["cache: s3"]) for a in ("s3:ListBucket", "s3:DeleteObject")} <= cloud.on_buckets
    assert "embedding cache" in capsys.readouterr().out


PREFIXES = {  # where an action is not named like its service
    "application-auto-scaling": "application-autoscaling",
    "resource-groups-tagging-api": "tag",
    "service-quotas": "servicequotas",
    "sagemaker-runtime": "sagemaker",
}


def test_deploying_and_removing_models_call_what_their_chapters_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that scales to zero is made, replaced and removed: nothing is called that is not in the table."""
    calls: set[str] = set()
    call = BaseClient._make_api_call

    def recorded(client: Any, operation: str, request: Any) -> Any:
        service = client.meta.service_model.service_id.hyphenize().lower()
        calls.add(f"{PREFIXES.get(service, service)}:{operation}")
        return call(client, operation, request)

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    scenario = SCENARIOS["replaced-that-scales-to-zero"]
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        for before in (True, False):
            region.deploy_scenario(scenario, before=before)
        deploying = calls - {"sagemaker:InvokeEndpoint"}  # of the part "embedding: sagemaker"
        calls.clear()
        region.teardown(scenario.experiment(region.state))
        region.teardown(scenario.experiment(region.state), "expired")
    for command, called in (("deploy-models", deploying), ("teardown", calls)):
        said = {action for right in iam.RIGHTS if command in right.commands for action in right.actions}
        assert len(called) > 10
        assert called - said == set(), command


def test_what_is_always_needed_is_enough_and_no_less(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every other S3 Vectors right denied a command works; with one of its own denied it names that one."""
    everything = {action.partition(":")[2] for action in EVERY_ACTION if action.startswith("s3vectors:")}
    cloud.run("create-index")
    cloud.run("ingest")
    for command, arguments in (("query", ("How long?",)), ("verify", ()), ("ledger rebuild", ())):
        needed = {a.partition(":")[2] for a in cloud.always(command) if a.startswith("s3vectors:")}
        cloud.vectors.denied = everything - needed
        cloud.run(command, *arguments)
        for action in needed:
            cloud.vectors.denied = {action}
            with pytest.raises(PermissionDenied) as caught:
                cloud.run(command, *arguments)
            assert "index papers/test" in f"{caught.value.message} {caught.value.hint}" or "arn:aws" in str(
                caught.value
            )
        cloud.vectors.denied = set()


def test_streamed_answers_need_their_own_right(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    """A query on a terminal streams, one with --json does not."""
    cloud.run("ingest")
    stream = "bedrock:InvokeModelWithResponseStream"
    assert stream in cloud.run("query", "How long is the warranty?")
    assert stream not in cloud.run("query", "How long is the warranty?", "--json")
