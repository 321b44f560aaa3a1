"""A region to deploy into: the control plane and the runtime side by side, and models that need no catalogue.

As a program, `python -m tests.deployments STATE SCENARIO`, it deploys in processes that a test may kill.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ragctl import deploy, deploy_plan, teardown
from ragctl.adapters import aws
from ragctl.blueprint import Resolved, Role, blueprint
from ragctl.config import Experiment
from ragctl.inventory import Selection
from tests.experiments import experiment
from tests.servers.sagemaker import SageMakerServer
from tests.servers.sagemaker_runtime import EmbeddingModel, Model, SageMakerRuntime, TextModel

ROLE = "arn:aws:iam::123456789012:role/models"
EMBEDDER = {"kind": "sagemaker", "model": "gte-qwen2"}
WRITER = {"kind": "sagemaker", "model": "deepseek-r1"}
EULA = "https://jumpstart-cache-prod-eu-west-1.s3.eu-west-1.amazonaws.com/eula/llama.txt"
IMAGES = "763104351884.dkr.ecr.eu-west-1.amazonaws.com"

KNOWN = {
    "gte-qwen2": Resolved(
        "gte-qwen2",
        "1.0.8",
        f"{IMAGES}/tei:2.0.1",
        "s3://jumpstart-cache-prod-eu-west-1/gte/v1/",
        "ml.g5.2xlarge",
        "tei",
        env={"MAX_BATCH_TOKENS": "16384", "HF_MODEL_ID": "/opt/ml/model"},
        network_isolation=True,
        download_timeout=1200,
        startup_timeout=1200,
        accelerators=1,
        memory_mb=16384,
    ),
    "deepseek-r1": Resolved(
        "deepseek-r1",
        "2.0.2",
        f"{IMAGES}/djl-inference:0.31.0",
        "s3://jumpstart-cache-prod-eu-west-1/deepseek/v2/",
        "ml.g6.12xlarge",
        "chat",
    ),
    "scorer": Resolved(
        "scorer",
        "1.0.0",
        f"{IMAGES}/tei:2.0.1",
        "s3://jumpstart-cache-prod-eu-west-1/s/",
        "ml.g5.xlarge",
        "tei",
    ),
    "llama": Resolved(
        "llama",
        "2.11.1",
        f"{IMAGES}/djl-inference:0.29.0",
        "s3://jumpstart-private-cache-prod-eu-west-1/llama/v2/",
        "ml.g5.4xlarge",
        "text",
        eula=EULA,
    ),
}


@dataclass(frozen=True)
class Scenario:
    """A deployment of the embedding model by these settings, perhaps over one that was made by others before."""

    settings: Mapping[str, Any]
    before: Mapping[str, Any] | None = None

    def experiment(self, state: Path | str, *, before: bool = False) -> Experiment:
        """The experiment "test" with what is to be there, or with what was there before."""
        settings = self.before if before else self.settings
        deployment = {"role_arn": ROLE, "expires_after": "1h", "embedding": settings}
        return experiment(embedding=EMBEDDER, state=str(state), deployment=deployment)


ZERO = {"autoscaling": {"min": 0, "max": 2, "target_invocations": 5}}
SCALES = {"autoscaling": {"min": 1, "max": 3, "target_invocations": 5}}
OTHER = {"env": {"A": "1"}}
SCENARIOS = {
    "plain": Scenario({}),
    "scales": Scenario(SCALES),
    "scales-to-zero": Scenario(ZERO),
    "replaced": Scenario(OTHER, before={}),
    "replaced-that-scales-to-zero": Scenario({**ZERO, **OTHER}, before=ZERO),
}


def resolve(role: Role, model_id: str, version: str) -> Resolved:
    """What the catalogue would say, in the version that is asked for where it is exact."""
    known = KNOWN[model_id]
    if "*" in version or version == known.version:
        return known
    return replace(known, version=version, env={**known.env, "VERSION": version})


@dataclass
class Region:
    """The servers, and an experiment's ways to them."""

    control: SageMakerServer
    runtime: SageMakerRuntime
    state: Path

    def experiment(self, **sections: Any) -> Experiment:
        """An experiment with an embedding model to deploy, unless the sections say otherwise."""
        deployment = {"role_arn": ROLE, **sections.pop("deployment", {})}
        return experiment(
            **{"embedding": EMBEDDER, "state": str(self.state), "deployment": deployment, **sections}
        )

    def deploy(self, experiment: Experiment, **options: Any) -> deploy.Outcome:
        """Deploy with the canned catalogue."""
        return deploy.deploy(experiment, tools(experiment), **options)

    def deploy_scenario(self, scenario: Scenario, *, before: bool = False) -> None:
        """Deploy what it is about, or what was there before."""
        wanted = scenario.experiment(self.state, before=before)
        self.answer_for(wanted)
        self.deploy(wanted, replace_differing=True)

    def answer_for(self, experiment: Experiment) -> None:
        """Have the runtime know the embedding model's component, where there is to be one."""
        component = blueprint(experiment, "embedding", KNOWN["gte-qwen2"]).component_name
        self.runtime.endpoints["ragctl-test-embedding"] = EmbeddingModel("tei", 384, component=component)

    def made_by_hand(self, *, status: str = "InService", image: str = "tei:1") -> None:
        """An endpoint "theirs" with config and model, which somebody made without ragctl."""
        aws.forget()
        control = aws.client("sagemaker", self.experiment())
        source = {"S3Uri": "s3://b/m/", "S3DataType": "S3Prefix", "CompressionType": "None"}
        container = {
            "Image": f"1.dkr.ecr.eu-west-1.amazonaws.com/{image}",
            "ModelDataSource": {"S3DataSource": source},
        }
        control.create_model(ModelName="theirs", PrimaryContainer=container, ExecutionRoleArn=ROLE)
        variant = {
            "VariantName": "one",
            "ModelName": "theirs",
            "InstanceType": "ml.g5.xlarge",
            "InitialInstanceCount": 1,
        }
        control.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
        control.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")
        self.control.thing("endpoint/theirs").status = status

    def teardown(self, experiment: Experiment, selection: Selection = "stack") -> list[str]:
        """Find, plan and remove; what became of it, as "endpoint NAME: deleted"."""
        found = teardown.models(experiment, selection)
        outcome = teardown.remove_models(found, lambda _: None)
        return [f"{item.type} {item.name}: {item.action}" for item in outcome]


def tools(experiment: Experiment) -> deploy_plan.Tools:
    """The real tools with the canned catalogue."""
    return replace(deploy_plan.tools(experiment), resolve=resolve)


def environment(control: str, runtime: str) -> dict[str, str]:
    """The variables by which the SDK finds the servers."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": control,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": runtime,
    }


@contextmanager
def region_in(state: Path) -> Iterator[Region]:
    """Servers of a region, with endpoints for the experiment "test"; the control plane must not be asked unknowns."""
    endpoints: dict[str, Model] = {
        "ragctl-test-embedding": EmbeddingModel("tei", 384),
        "ragctl-test-generation": TextModel("chat"),
        "theirs": EmbeddingModel("tei", 64),
    }
    with SageMakerServer() as control, SageMakerRuntime(endpoints) as runtime:
        yield Region(control, runtime, state)
    assert (control.unexpected, control.broken, runtime.unexpected, runtime.broken) == ([], [], [], [])


@contextmanager
def region_at_hand(state: Path, patch: pytest.MonkeyPatch) -> Iterator[Region]:
    """As `region_in`, for what runs in this process: found by the environment, without waits and repeated calls."""
    for module in (deploy, teardown):
        patch.setattr(module, "POLL_S", 0.01)
    patch.setattr(teardown, "FIRST_POLL_S", 0.01)
    patch.setattr(deploy, "FIRST_POLL_S", 0.01)
    patch.setattr(deploy, "UNSEEN_DELAY_S", 0.01)
    patch.setattr(aws, "ATTEMPTS", 1)
    with region_in(state) as region:
        for name, value in environment(region.control.url, region.runtime.url).items():
            patch.setenv(name, value)
        yield region
        aws.forget()
    assert region.control.wrong_order == []


def main() -> None:
    """For each line that comes in, deploy in a process of its own: print its id, and its exit status at the end.

    They are forked from this one, which has made its clients and nothing else: that takes most of the time.
    """
    state, scenario = sys.argv[1:]
    deploy.POLL_S = deploy.FIRST_POLL_S = teardown.POLL_S = teardown.FIRST_POLL_S = 0.01
    deployed = SCENARIOS[scenario].experiment(state)
    means = tools(deployed)
    for _ in sys.stdin:
        process = os.fork()
        if process == 0:
            deploy.deploy(deployed, means, replace_differing=True)
            os._exit(0)
        print(process, flush=True)  # noqa: T201  read by the test
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201  read by the test


if __name__ == "__main__":
    main()
