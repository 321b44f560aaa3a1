"""deploy.py and deploy_plan.py: models up, over real HTTP, and everything down again when anything goes wrong."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ragctl import deploy, deployment, teardown
from ragctl.adapters import aws, open_embedder, open_generator, open_reranker
from ragctl.blueprint import blueprint
from ragctl.deploy import Interrupted
from ragctl.deployment import Ref
from ragctl.errors import (
    ConfigError,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Refused,
    ServiceError,
)
from ragctl.state import LocalState
from tests.deployments import (
    EMBEDDER,
    EULA,
    KNOWN,
    ROLE,
    SCALES,
    SCENARIOS,
    WRITER,
    ZERO,
    Region,
    Scenario,
    region_at_hand,
    tools,
)
from tests.servers.http import Fault
from tests.servers.sagemaker_runtime import EmbeddingModel, RerankModel
from tests.servers.sagemaker_things import Fate


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    """A region with nothing in it, and no waiting."""
    with region_at_hand(tmp_path / "state", monkeypatch) as region:
        yield region


def requests_of(region: Region, operation: str) -> list[dict[str, Any]]:
    return [request for name, request in region.control.requests if name == operation]


def kinds(region: Region) -> list[str]:
    return [path.partition("/")[0] for path in region.control.existing()]


# --- up --------------------------------------------------------------------------------------------------


def test_two_models_come_up_in_parallel(region: Region) -> None:
    """Model, endpoint config and endpoint of each, in service, with the record saying so."""
    outcome = region.deploy(region.experiment(generation=WRITER))
    assert kinds(region) == ["endpoint-config", "endpoint-config", "endpoint", "endpoint", "model", "model"]
    assert {resource.action for resource in outcome.resources} == {"created"}
    record, _ = deployment.read(LocalState(region.state), "test")
    assert record is not None
    embedding, generation = record.models["embedding"], record.models["generation"]
    assert (embedding.ready, embedding.dimension, embedding.family) == (True, 384, "tei")
    assert (embedding.model_id, embedding.model_version, embedding.instance_type) == (
        "gte-qwen2",
        "1.0.8",
        "ml.g5.2xlarge",
    )
    assert (generation.family, generation.dimension) == ("chat", None)


def test_all_three_carry_the_tags(region: Region) -> None:
    """Whoever looks at the bill sees whose it is, which model, and until when."""
    region.deploy(region.experiment(deployment={"expires_after": "8h"}))
    for path in region.control.existing():
        tags = region.control.thing(path).tags
        assert tags["ragctl:stack"] == "test"
        assert tags["ragctl:role"] == "embedding"
        assert tags["ragctl:model-id"] == "gte-qwen2"
        assert tags["ragctl:model-version"] == "1.0.8"
        assert tags["sagemaker-sdk:jumpstart-model-id"] == "gte-qwen2"
        assert tags["ragctl:created"] < tags["ragctl:expires"]


def test_the_record_is_there_before_the_first_create(region: Region) -> None:
    """It names all that is about to exist, so that a killed run can be cleaned up after."""
    seen: list[set[Ref]] = []

    def look(operation: str) -> None:
        if operation == "CreateModel":
            record, _ = deployment.read(LocalState(region.state), "test")
            seen.append(set(record.resources) if record else set())

    region.control.after_call = look
    outcome = region.deploy(region.experiment())
    assert seen == [{Ref(item.type, item.name) for item in outcome.resources}]  # type: ignore[arg-type] # the types of refs


def test_the_requests_say_what_the_config_says(region: Region) -> None:
    """Environment (the user's wins), VPC, key, isolation, role, AMI, count and the catalogue's timeouts."""
    region.deploy(
        region.experiment(
            deployment={
                "vpc": {"subnets": ["subnet-1"], "security_groups": ["sg-1", "sg-2"]},
                "kms_key": "arn:aws:kms:eu-west-1:123456789012:key/k",
                "network_isolation": False,
                "embedding": {
                    "instance_count": 2,
                    "env": {"MAX_BATCH_TOKENS": "777"},
                    "inference_ami": "al2-ami-sagemaker-inference-gpu-3-1",
                },
            }
        )
    )
    (model,), (config,) = requests_of(region, "CreateModel"), requests_of(region, "CreateEndpointConfig")
    assert model["PrimaryContainer"]["Environment"] == {
        "MAX_BATCH_TOKENS": "777",
        "HF_MODEL_ID": "/opt/ml/model",
    }
    assert model["PrimaryContainer"]["ModelDataSource"]["S3DataSource"] == {
        "S3Uri": KNOWN["gte-qwen2"].artefact,
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }
    assert model["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1", "sg-2"]}
    assert (model["EnableNetworkIsolation"], model["ExecutionRoleArn"]) == (False, ROLE)
    variant = config["ProductionVariants"][0]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.g5.2xlarge", 2)
    assert variant["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 1200
    assert config["KmsKeyId"].endswith("key/k")


def test_again_keeps_what_is_there_and_renews_its_lease(region: Region) -> None:
    """Twice in a row makes nothing new; the time until it expires starts again."""
    region.deploy(region.experiment(deployment={"expires_after": "1h"}))
    before = {path: region.control.thing(path).tags["ragctl:expires"] for path in region.control.existing()}
    region.control.requests.clear()
    outcome = region.deploy(region.experiment(deployment={"expires_after": "2d"}))
    assert {resource.action for resource in outcome.resources} == {"kept"}
    assert not [name for name, _ in region.control.requests if name.startswith(("Create", "Update"))]
    assert all(region.control.thing(path).tags["ragctl:expires"] > then for path, then in before.items())


def test_without_expiry_the_old_one_goes(region: Region) -> None:
    """An endpoint that is to stay must not be removed by the cron job of yesterday."""
    region.deploy(region.experiment(deployment={"expires_after": "1h"}))
    region.deploy(region.experiment())
    assert not [p for p in region.control.existing() if "ragctl:expires" in region.control.thing(p).tags]


def test_a_newer_version_does_not_disturb_what_is_deployed(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With "*" in the config the deployed version stays until --replace asks for the newest."""
    asked: list[str] = []
    original = KNOWN["gte-qwen2"]
    region.deploy(region.experiment())

    def resolve(role: str, model_id: str, version: str) -> Any:
        asked.append(version)
        return original

    experiment = region.experiment()
    for newest in (False, True):
        deploy.deploy(experiment, replace(tools(experiment), resolve=resolve), replace_differing=newest)
    assert asked == ["1.0.8", "*"]


def test_a_config_that_is_not_seen_at_once(region: Region) -> None:
    """CreateEndpoint may not see the config that was made a moment ago; it is asked again."""
    region.control.unseen = 2
    region.deploy(region.experiment())
    assert region.control.thing("endpoint/ragctl-test-embedding").status == "InService"


def test_dry_run_makes_nothing(region: Region) -> None:
    """The plan, with what it would cost."""
    region.control.prices["ml.g5.2xlarge"] = 1.515
    experiment = region.experiment(deployment={"embedding": {"instance_count": 2}})
    from ragctl import cost

    assert cost.refresh(experiment, LocalState(region.state)) == 1
    outcome = region.deploy(experiment, dry_run=True)
    assert [(r.action, r.status) for r in outcome.resources] == [
        ("would create", "2 x ml.g5.2xlarge, $3.03 an hour, $72.72 a day")
    ]
    assert region.control.existing() == []
    assert deployment.read(LocalState(region.state), "test") == (None, None)


def test_the_price_is_said_before_anything_is_made(region: Region) -> None:
    """An unknown price is said to be unknown, never free."""
    said: list[str] = []
    region.deploy(region.experiment(), tell=said.append)
    assert said[0] == ("embedding: create endpoint ragctl-test-embedding: 1 x ml.g5.2xlarge, price unknown")


# --- refusals --------------------------------------------------------------------------------------------


def test_a_license_must_be_accepted(region: Region) -> None:
    """Nothing is made before that, and the link is in the message."""
    writer = {"kind": "sagemaker", "model": "llama"}
    with pytest.raises(Refused) as caught:
        region.deploy(region.experiment(generation=writer))
    assert caught.value.message == (f"generation: llama has a license that must be accepted first: {EULA}")
    assert region.control.existing() == []
    region.deploy(region.experiment(generation=writer, deployment={"generation": {"accept_eula": True}}))
    accepted = [
        request["PrimaryContainer"]["ModelDataSource"]["S3DataSource"].get("ModelAccessConfig")
        for request in requests_of(region, "CreateModel")
    ]
    assert sorted(accepted, key=str) == [None, {"AcceptEula": True}]


def test_a_quota_of_nothing_is_said_before_creating(region: Region) -> None:
    """With the quota's name, before a model or config is left lying about."""
    region.control.quotas |= {"ml.c5.large": 4, "ml.g5.2xlarge": 0, "ml.g5.4xlarge": 1}
    with pytest.raises(QuotaExceeded) as caught:
        region.deploy(region.experiment())
    assert caught.value.message == (
        '1 x ml.g5.2xlarge needed, and the quota "ml.g5.2xlarge for endpoint usage" is 0'
    )
    assert region.control.existing() == []


def test_two_models_of_one_type_need_the_quota_together(region: Region) -> None:
    """Each alone would fit."""
    region.control.quotas["ml.g5.2xlarge"] = 1
    with pytest.raises(QuotaExceeded, match=r"2 x ml\.g5\.2xlarge"):
        region.deploy(
            region.experiment(generation={"kind": "sagemaker", "model": "gte-qwen2", "family": "text"})
        )


def test_without_the_permission_quotas_are_not_checked(
    region: Region, caplog: pytest.LogCaptureFixture
) -> None:
    """The check is a courtesy; the run goes on and says that it was left out."""
    region.control.faults.add(Fault("error", "ListServiceQuotas", 400, "AccessDeniedException", "no"))
    with caplog.at_level(logging.WARNING, "ragctl"):
        region.deploy(region.experiment())
    assert "the quota for ml.g5.2xlarge is not checked" in caplog.text


def test_no_execution_role(region: Region) -> None:
    """Said as a fault of the config."""
    with pytest.raises(ConfigError, match=r"deployment\.role_arn is not set"):
        region.deploy(region.experiment(deployment={"role_arn": None}))


def test_an_endpoint_that_differs_is_refused_with_the_differences(region: Region) -> None:
    """Told member by member; nothing is changed."""
    region.deploy(region.experiment())
    before = region.control.existing()
    other = {"embedding": {"instance_count": 2, "env": {"MAX_BATCH_TOKENS": "8"}}}
    with pytest.raises(Refused) as caught:
        region.deploy(region.experiment(deployment=other))
    assert caught.value.message.splitlines() == [
        "embedding: endpoint ragctl-test-embedding is not as the experiment asks:",
        "  ProductionVariants.InitialInstanceCount: the endpoint has 1, the experiment asks for 2",
        "  PrimaryContainer.Environment.MAX_BATCH_TOKENS: the endpoint has 16384, the experiment asks for 8",
    ]
    assert region.control.existing() == before


def test_replace_updates_while_it_serves(region: Region) -> None:
    """The endpoint stays; its old config and model go once the new ones serve."""
    region.deploy(region.experiment())
    old = set(region.control.existing())
    outcome = region.deploy(
        region.experiment(deployment={"embedding": {"env": {"A": "1"}}}), replace_differing=True
    )
    assert [r.action for r in outcome.resources if r.type == "endpoint"] == ["replaced"]
    assert set(region.control.existing()) & old == {"endpoint/ragctl-test-embedding"}
    assert len(region.control.existing()) == 3
    assert requests_of(region, "DeleteEndpoint") == []
    assert outcome.record is not None
    assert {f"{ref.type}/{ref.name}" for ref in outcome.record.resources} == set(region.control.existing())


def recorded(region: Region) -> tuple[str | None, bool]:
    """The embedding model's version by the record, and whether it may be used."""
    record, _ = deployment.read(LocalState(region.state), "test")
    assert record is not None
    return record.models["embedding"].model_version, record.models["embedding"].ready


@pytest.mark.parametrize("falls_back", [False, True])
def test_while_another_model_takes_over_nobody_embeds(region: Region, falls_back: bool) -> None:
    """Old and new vectors in one index would not be noticed; once it is clear which model serves, it is used again."""
    older = {"embedding": {**EMBEDDER, "model_version": "1.0.7"}}
    region.deploy(region.experiment(**older))
    seen: list[tuple[str | None, bool]] = []
    region.control.after_call = lambda name: (
        seen.append(recorded(region)) if name == "UpdateEndpoint" else None
    )
    if falls_back:
        region.control.thing("endpoint/ragctl-test-embedding").fate = Fate("Failed")
        with pytest.raises(ServiceError, match="went back to its old config"):
            region.deploy(region.experiment(), replace_differing=True)
        assert recorded(region) == ("1.0.7", True)
        assert open_embedder(region.experiment(**older)).identity == "sagemaker:gte-qwen2@1.0.7:tei"
    else:
        region.deploy(region.experiment(), replace_differing=True)
        assert recorded(region) == ("1.0.8", True)
    assert seen == [("1.0.8", False)]


def test_while_only_its_settings_change_it_is_used(region: Region) -> None:
    """The vectors are the same, and the endpoint serves all the while."""
    region.deploy(region.experiment())
    seen: list[tuple[str | None, bool]] = []
    region.control.after_call = lambda name: (
        seen.append(recorded(region)) if name == "UpdateEndpoint" else None
    )
    other = {"embedding": {"env": {"A": "1"}}}
    region.deploy(region.experiment(deployment=other), replace_differing=True)
    assert seen == [("1.0.8", True)]


def test_an_update_that_falls_back_is_undone(region: Region) -> None:
    """The service keeps the old instances; the new config and model go, and the reason is told."""
    region.deploy(region.experiment())
    before = region.control.existing()
    region.control.thing("endpoint/ragctl-test-embedding").fate = Fate("Failed", reason="out of memory")
    with pytest.raises(ServiceError, match="went back to its old config: out of memory"):
        region.deploy(
            region.experiment(deployment={"embedding": {"env": {"A": "1"}}}), replace_differing=True
        )
    assert region.control.existing() == before


def test_an_experiment_without_models(region: Region, tmp_path: Path) -> None:
    """Says that there is nothing to deploy, and asks nobody."""
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps({"name": "test", "sources": [{"kind": "local", "name": "docs", "path": "."}]}))
    command = [sys.executable, "-m", "ragctl", "deploy-models", str(path)]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.stdout == (
        "this experiment has nothing to deploy: embedding is hashing, generation is extractive\n"
    )
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert json.loads(as_json.stdout) == {"schema": "ragctl.deploy-models/1", "resources": []}
    assert region.control.calls == []


def test_a_reranker_is_deployed_too(region: Region) -> None:
    """And found by its record."""
    region.runtime.endpoints["ragctl-test-reranking"] = RerankModel()
    scorer = {"kind": "sagemaker", "model": "scorer"}
    experiment = region.experiment(embedding={"kind": "hashing"}, reranking=scorer)
    region.deploy(experiment)
    assert region.control.thing("endpoint/ragctl-test-reranking").tags["ragctl:role"] == "reranking"
    reranker = open_reranker(experiment)
    assert reranker is not None
    assert reranker.identity == "sagemaker:scorer@1.0.0:tei"
    assert reranker.rerank("green tea", ["a gate", "green tea"]) == [0.0, 1.0]


# --- somebody else's -------------------------------------------------------------------------------------


NAMED = {"kind": "sagemaker", "endpoint": "theirs"}


def test_an_endpoint_by_name_is_used_and_left_alone(region: Region) -> None:
    """Its family is read off its image, its dimension is asked; teardown does not touch it."""
    region.made_by_hand()
    experiment = region.experiment(embedding=NAMED)
    outcome = region.deploy(experiment)
    assert [(r.name, r.action) for r in outcome.resources] == [("theirs", "in use")]
    assert open_embedder(experiment).dimension == 64
    assert region.teardown(experiment) == []
    assert region.control.existing() == ["endpoint-config/theirs", "endpoint/theirs", "model/theirs"]
    assert region.control.thing("endpoint/theirs").tags == {}


def test_an_endpoint_is_taken_over_when_told_to(region: Region) -> None:
    """From then on it carries our tags, and teardown removes it with its config and model."""
    region.made_by_hand()
    experiment = region.experiment(embedding=NAMED, deployment={"embedding": {"take_over": True}})
    region.deploy(experiment)
    assert {region.control.thing(path).tags["ragctl:stack"] for path in region.control.existing()} == {"test"}
    region.teardown(experiment)
    assert region.control.existing() == []


def test_a_name_that_is_taken_is_refused(region: Region) -> None:
    """An endpoint that ragctl did not make is never updated unasked."""
    region.made_by_hand()
    section = {"kind": "sagemaker", "endpoint": "theirs", "model": "gte-qwen2"}
    with pytest.raises(Refused, match="there is an endpoint theirs that was not made by ragctl"):
        region.deploy(region.experiment(embedding=section), replace_differing=True)


def test_the_endpoint_of_another_experiment_is_refused(region: Region) -> None:
    """Told whose it is."""
    region.deploy(region.experiment())
    section = {"kind": "sagemaker", "endpoint": "ragctl-test-embedding", "model": "gte-qwen2"}
    other = region.experiment(name="other", embedding=section, state=str(region.state / "other"))
    with pytest.raises(Refused, match="belongs to the experiment test"):
        region.deploy(other)


def test_a_named_endpoint_must_exist(region: Region) -> None:
    """Neither a model to deploy nor an endpoint to use."""
    with pytest.raises(NotFound, match="embedding: there is no endpoint theirs"):
        region.deploy(region.experiment(embedding=NAMED))


def test_a_container_that_tells_no_family(region: Region) -> None:
    """Guessing would send it requests that it does not understand."""
    region.made_by_hand(image="homemade:1")
    with pytest.raises(ConfigError, match="nothing tells which payload family endpoint theirs speaks"):
        region.deploy(region.experiment(embedding=NAMED))


# --- failures --------------------------------------------------------------------------------------------


def test_an_endpoint_that_fails_is_told_and_removed(region: Region) -> None:
    """With the service's reason; a failed endpoint would block its name."""
    region.control.fates["test"] = Fate("Failed", reason="Unable to provision requested ML compute capacity.")
    with pytest.raises(ServiceError) as caught:
        region.deploy(region.experiment())
    assert caught.value.message == (
        "endpoint ragctl-test-embedding is Failed: Unable to provision requested ML compute capacity."
    )
    assert region.control.existing() == []


def test_one_model_fails_and_all_go(region: Region) -> None:
    """Half of an experiment's models is nothing to pay for."""
    region.control.fates["generation"] = Fate("Failed")
    with pytest.raises(ServiceError, match="ragctl-test-generation is Failed"):
        region.deploy(region.experiment(generation=WRITER))
    assert region.control.existing() == []


def test_a_limit_found_only_at_create(region: Region) -> None:
    """Model and config exist by then; they go again."""
    region.control.limits["ml.g5.2xlarge"] = 0
    with pytest.raises(QuotaExceeded, match=r"'ml\.g5\.2xlarge for endpoint usage' is 0 Instances"):
        region.deploy(region.experiment())
    assert region.control.existing() == []


def test_an_endpoint_stuck_in_creating(region: Region) -> None:
    """The wait is bounded, says what it waited for, and what was made goes."""
    region.control.fates["test"] = Fate(after=None)
    with pytest.raises(ServiceError) as caught:
        region.deploy(region.experiment(deployment={"timeout": "1s"}))
    assert caught.value.message == "endpoint ragctl-test-embedding is still Creating after 1s"
    assert region.control.existing() == []


def test_stuck_and_not_to_be_deleted_yet(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is named with the command that removes it, and that command does, once it can."""
    monkeypatch.setattr(teardown, "GONE_TIMEOUT_S", 0.2)
    region.control.fates["test"] = Fate(after=None, deletable=False)
    experiment = region.experiment(deployment={"timeout": "1s"})
    with pytest.raises(ServiceError) as caught:
        region.deploy(experiment)
    assert "is still Creating after 1s; still there, and perhaps costing: endpoint" in caught.value.message
    assert "ragctl teardown CONFIG --models" in caught.value.message
    assert kinds(region) == ["endpoint-config", "endpoint", "model"]
    with pytest.raises(
        ServiceError, match=r"some resources still exist:\n  endpoint ragctl-test-embedding: "
    ):
        region.teardown(experiment)
    region.control.thing("endpoint/ragctl-test-embedding").status = "Failed"
    region.teardown(experiment)
    assert region.control.existing() == []


def test_a_failed_endpoint_of_ours_makes_way(region: Region) -> None:
    """It keeps its name and would block the next deployment."""
    region.deploy(region.experiment())
    region.control.thing("endpoint/ragctl-test-embedding").status = "Failed"
    outcome = region.deploy(region.experiment())
    assert [(r.type, r.action) for r in outcome.resources if r.type == "endpoint"] == [
        ("endpoint", "created")
    ]
    assert region.control.thing("endpoint/ragctl-test-embedding").status == "InService"


def test_told_to_stop(region: Region) -> None:
    """What was made by then goes."""
    stop, made = threading.Event(), threading.Event()
    region.control.fates["test"] = Fate(after=None)

    def note(operation: str) -> None:
        if operation == "CreateEndpoint":
            made.set()
        if operation == "DescribeEndpoint" and made.is_set():
            stop.set()

    region.control.after_call = note
    with pytest.raises(Interrupted):
        region.deploy(region.experiment(), stop=stop)
    assert made.is_set()
    assert region.control.existing() == []


def test_a_model_that_does_not_answer_is_undone(region: Region) -> None:
    """The probe is a part of deploying: an endpoint that cannot be used is nothing to pay for."""
    region.runtime.endpoints.clear()
    with pytest.raises(NotFound, match="Endpoint ragctl-test-embedding of account"):
        region.deploy(region.experiment())
    assert region.control.existing() == []


def test_a_create_whose_reply_is_lost(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK repeats the call and finds that the thing is there: it is ours."""
    monkeypatch.setattr(aws, "ATTEMPTS", 2)
    aws.forget()
    for operation in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint"):
        region.control.faults.add(Fault("lost", operation))
    region.deploy(region.experiment())
    assert len(region.control.faults.injected) == 3
    assert kinds(region) == ["endpoint-config", "endpoint", "model"]


def test_a_killed_run_can_be_taken_up_again(region: Region) -> None:
    """A second deployment finds what the first one made and finishes it."""
    experiment = region.experiment()
    region.control.faults.add(Fault("error", "CreateEndpoint", 400, "AccessDeniedException", "no"))
    region.control.faults.add(Fault("error", "DeleteModel", 400, "AccessDeniedException", "no"))
    region.control.faults.add(Fault("error", "DeleteEndpointConfig", 400, "AccessDeniedException", "no"))
    with pytest.raises(PermissionDenied, match="still there, and perhaps costing"):
        region.deploy(experiment)
    assert kinds(region) == ["endpoint-config", "model"]
    region.deploy(experiment)
    assert kinds(region) == ["endpoint-config", "endpoint", "model"]


# --- the record in use -----------------------------------------------------------------------------------


def test_commands_find_the_endpoint_by_the_record(region: Region) -> None:
    """The endpoint's name, family and dimension need not be typed."""
    experiment = region.experiment(generation=WRITER)
    region.deploy(experiment)
    embedder = open_embedder(experiment)
    assert embedder.dimension == 384
    assert embedder.identity == "sagemaker:gte-qwen2@1.0.8:tei"
    assert open_generator(experiment).identity == "sagemaker:deepseek-r1@2.0.2:chat"


def test_past_its_time_every_command_warns(region: Region, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever still uses it is told that it still costs."""
    experiment = region.experiment(deployment={"expires_after": "8h"})
    region.deploy(experiment)
    path = region.state / deployment.record_name("test")
    document = json.loads(path.read_text())
    document["models"]["embedding"]["expires"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING, "ragctl"):
        open_embedder(experiment)
    assert (
        "endpoint ragctl-test-embedding was to be gone at 2020-01-01T00:00:00Z and still costs" in caplog.text
    )


def test_another_model_in_the_config_than_is_deployed(region: Region) -> None:
    """Its vectors would be taken for the other's."""
    region.deploy(region.experiment())
    other = region.experiment(embedding={"kind": "sagemaker", "model": "bge"})
    with pytest.raises(ConfigError) as caught:
        open_embedder(other)
    assert caught.value.message == (
        "embedding.model is bge, but what is deployed at ragctl-test-embedding is gte-qwen2"
    )


def test_a_damaged_record_is_told(region: Region) -> None:
    """With the way out."""
    region.state.mkdir()
    (region.state / deployment.record_name("test")).write_text('{"schema": "ragctl.deployment/1"}')
    with pytest.raises(ServiceError, match="is damaged"):
        region.deploy(region.experiment())


# --- scaling ---------------------------------------------------------------------------------------------


def test_an_endpoint_that_scales(region: Region) -> None:
    """Instances between the bounds; teardown removes the target first."""
    scaling = {"autoscaling": {"min": 1, "max": 3, "target_invocations": 5}}
    experiment = region.experiment(deployment={"embedding": scaling})
    region.deploy(experiment)
    (target,) = region.control.scaling.targets.values()
    assert target["ScalableDimension"] == "sagemaker:variant:DesiredInstanceCount"
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    region.deploy(experiment)
    gone = region.teardown(experiment)
    assert gone[0] == "scaling-target endpoint/ragctl-test-embedding/variant/AllTraffic: deleted"
    assert region.control.existing() == []


def test_an_endpoint_that_scales_to_zero(region: Region) -> None:
    """An inference component with an alarm that wakes it; all of it goes in the right order."""
    scaling = {"autoscaling": {"min": 0, "max": 2, "target_invocations": 5}}
    experiment = region.experiment(deployment={"embedding": scaling})
    component = blueprint(experiment, "embedding", KNOWN["gte-qwen2"]).component_name
    region.runtime.endpoints["ragctl-test-embedding"] = EmbeddingModel("tei", 384, component=component)
    region.deploy(experiment)
    (config,) = requests_of(region, "CreateEndpointConfig")
    variant = config["ProductionVariants"][0]
    assert "ModelName" not in variant
    assert variant["ManagedInstanceScaling"] == {
        "Status": "ENABLED",
        "MinInstanceCount": 0,
        "MaxInstanceCount": 2,
    }
    (target,) = region.control.scaling.targets.values()
    assert target["ScalableDimension"] == "sagemaker:inference-component:DesiredCopyCount"
    (alarm,) = region.control.scaling.alarms.values()
    assert alarm["MetricName"] == "NoCapacityInvocationFailures"
    assert open_embedder(experiment).embed(["x"], "query").vectors.shape == (1, 384)
    assert {item.action for item in region.deploy(experiment).resources} == {"kept"}
    assert [line.partition(" ")[0] for line in region.teardown(experiment)] == [
        "alarm",
        "scaling-target",
        "inference-component",
        "endpoint",
        "endpoint-config",
        "model",
    ]
    assert region.control.existing() == []


@pytest.mark.parametrize(
    ("before", "settings", "left"),
    [
        (SCALES, {}, []),
        (SCALES, ZERO, ["alarm", "inference-component", "scaling"]),
        (ZERO, SCALES, ["scaling"]),
        (ZERO, {}, []),
    ],
)
def test_scaling_that_is_not_asked_for_any_more_ends(
    region: Region, before: dict[str, Any], settings: dict[str, Any], left: list[str]
) -> None:
    """No alarm, target or copy of the way it was is left to scale, and to cost, behind the config's back."""
    change = Scenario(settings, before=before)
    region.deploy_scenario(change, before=True)
    region.deploy_scenario(change)
    assert sorted(kinds(region)) == sorted(["endpoint", "endpoint-config", "model", *left])
    (target,) = region.control.scaling.targets or [None]
    assert (target is None) == (not left)
    assert target is None or target.startswith("inference-component" if settings is ZERO else "endpoint/")


def test_what_is_not_needed_any_more_and_stays_is_told(
    region: Region, caplog: pytest.LogCaptureFixture
) -> None:
    """The new one serves, so the run is a success; but whoever may not remove the old one is told what is left."""
    region.deploy_scenario(SCENARIOS["replaced"], before=True)
    (old,) = [path for path in region.control.existing() if path.startswith("model/")]
    denied = Fault("error", "DeleteModel", 400, "AccessDeniedException", "not allowed")
    region.control.faults.add(denied)
    region.deploy_scenario(SCENARIOS["replaced"])
    assert f"{old.replace('/', ' ')} is not needed any more and could not be removed: " in caplog.text
    assert old in region.control.existing()
    region.deploy_scenario(SCENARIOS["replaced"])
    assert old not in region.control.existing()


def test_a_model_whose_needs_are_unknown_cannot_scale_to_zero(region: Region) -> None:
    """The service wants to know the memory of a copy."""
    scaling = {"autoscaling": {"min": 0, "max": 2, "target_invocations": 5}}
    with pytest.raises(ConfigError, match="does not say what memory a copy of deepseek-r1 needs"):
        region.deploy(region.experiment(generation=WRITER, deployment={"generation": scaling}))
