"""What the resources of one deployed model must be like, as the requests that make them, and how others differ.

Models and endpoint configs cannot be changed once they are made, so their names end in a hash of what they are: a
config of the right name is the right config, and a create whose reply was lost can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ragctl.backends import SECRET_VARIABLE
from ragctl.deployment import VARIANT, Ref, scaled_by
from ragctl.errors import ConfigError, Refused
from ragctl.records import short_hash

if TYPE_CHECKING:
    from ragctl.backends import ModelDeployment
    from ragctl.config import Experiment

Role = Literal["embedding", "generation", "reranking"]
ROLES: Final[tuple[Role, ...]] = ("embedding", "generation", "reranking")

# Of a model, endpoint config, endpoint or inference component (SageMaker API reference)
NAME_LENGTH: Final = 63
HASH_LENGTH: Final = 8


@dataclass(frozen=True, slots=True)
class Resolved:
    """What JumpStart says of a model on one instance type. Times in seconds; None: the service's default."""

    model_id: str
    version: str
    image: str
    artefact: str  # S3 URI; one that ends in a slash is a prefix of plain files, any other a .tar.gz
    instance_type: str
    family: str | None  # the payload family its examples speak; None: none that ragctl knows
    env: Mapping[str, str] = field(default_factory=dict)
    network_isolation: bool = False
    download_timeout: int | None = None
    startup_timeout: int | None = None
    volume_gb: int | None = None
    ami: str | None = None
    eula: str | None = None  # where the license is to be read; None: there is none to accept
    accelerators: int | None = None  # of one copy as an inference component
    memory_mb: int | None = None
    hub_content: str | None = None  # ARN in a private hub


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The requests that make one model's resources, without the names and tags that go with them."""

    role: Role
    resolved: Resolved
    endpoint: str
    model: Mapping[str, Any]  # CreateModel
    config: Mapping[str, Any]  # CreateEndpointConfig
    component: Mapping[str, Any] | None  # CreateInferenceComponent, for one that may scale to zero
    instance_count: int

    @property
    def model_name(self) -> str:
        return self._derived(self.model)

    @property
    def config_name(self) -> str:
        return self._derived(self.config)

    @property
    def component_name(self) -> str | None:
        return None if self.component is None else self._derived(self.component)

    @property
    def refs(self) -> frozenset[Ref]:
        """Everything that it makes, without the scaling."""
        refs = {
            Ref("model", self.model_name),
            Ref("endpoint-config", self.config_name),
            Ref("endpoint", self.endpoint),
        }
        if self.component_name:
            refs.add(Ref("inference-component", self.component_name))
        return frozenset(refs)

    def is_version_of_ours(self, ref: Ref) -> bool:
        """Whether its name says that it is a part or the scaling of this endpoint, as wanted now or at another time.

        Never said where the endpoint's name is too long to be whole in those names: another's may look the same.
        """
        name = scaled_by(ref)
        stem, _, digest = name.rpartition("-")
        return ref.type != "endpoint" and (
            name == self.endpoint or (stem == self.endpoint and len(digest) == HASH_LENGTH)
        )

    def _derived(self, request: Mapping[str, Any]) -> str:
        digest = short_hash(json.dumps(request, sort_keys=True).encode())[:HASH_LENGTH]
        return f"{self.endpoint[: NAME_LENGTH - HASH_LENGTH - 1].rstrip('-')}-{digest}"


def endpoint_name(experiment: Experiment, role: Role) -> str:
    """The endpoint's name where the section does not give one; at most 54 characters."""
    stack, room = experiment.name, NAME_LENGTH - HASH_LENGTH - 1 - len(f"ragctl--{role}")
    if len(stack) > room:
        stack = f"{stack[: room - HASH_LENGTH - 1]}-{short_hash(stack.encode())[:HASH_LENGTH]}"
    return "-".join(filter(None, f"ragctl-{stack}-{role}".split("-")))  # two hyphens in a row are refused


def name_prefix(stack: str) -> str:
    """What the names of the stack's endpoints begin with, where the config does not name them."""
    return "-".join(filter(None, f"ragctl-{stack}".split("-")))[:27]


def blueprint(
    experiment: Experiment, role: Role, resolved: Resolved, *, endpoint: str | None = None
) -> Blueprint:
    """What the role's resources must be like. Raises ConfigError without a role, Refused without the EULA."""
    settings: ModelDeployment = getattr(experiment.deployment, role)
    if experiment.deployment.role_arn is None:
        raise ConfigError("deployment.role_arn is not set", hint="name the execution role of the models")
    if resolved.eula and not settings.accept_eula:
        raise Refused(
            f"{role}: {resolved.model_id} has a license that must be accepted first: {resolved.eula}",
            hint=f"read it, then say --accept-eula or set deployment.{role}.accept_eula: true",
        )
    name = endpoint or endpoint_name(experiment, role)
    model = _model_request(experiment, settings, resolved)
    draft = Blueprint(role, resolved, name, model, {}, None, settings.instance_count)
    component = _component_request(draft, resolved) if _scales_to_zero(settings) else None
    config = _config_request(experiment, settings, resolved, None if component else draft.model_name)
    return Blueprint(role, resolved, name, model, config, component, settings.instance_count)


def _scales_to_zero(settings: ModelDeployment) -> bool:
    return settings.autoscaling is not None and settings.autoscaling.min == 0


def _model_request(experiment: Experiment, settings: ModelDeployment, resolved: Resolved) -> dict[str, Any]:
    deployment = experiment.deployment
    isolation = deployment.network_isolation
    return {
        "ExecutionRoleArn": deployment.role_arn,
        "PrimaryContainer": {
            "Image": resolved.image,
            "ModelDataSource": {"S3DataSource": _data_source(resolved)},
            "Environment": {**resolved.env, **settings.env},
        },
        "EnableNetworkIsolation": resolved.network_isolation if isolation is None else isolation,
        **_vpc(experiment),
    }


def _data_source(resolved: Resolved) -> dict[str, Any]:
    prefix = resolved.artefact.endswith("/")
    return {
        "S3Uri": resolved.artefact,
        "S3DataType": "S3Prefix" if prefix else "S3Object",
        "CompressionType": "None" if prefix else "Gzip",
        **({"ModelAccessConfig": {"AcceptEula": True}} if resolved.eula else {}),
        **({"HubAccessConfig": {"HubContentArn": resolved.hub_content}} if resolved.hub_content else {}),
    }


def _vpc(experiment: Experiment) -> dict[str, Any]:
    vpc = experiment.deployment.vpc
    if vpc is None:
        return {}
    return {"VpcConfig": {"Subnets": list(vpc.subnets), "SecurityGroupIds": list(vpc.security_groups)}}


def _config_request(
    experiment: Experiment, settings: ModelDeployment, resolved: Resolved, model_name: str | None
) -> dict[str, Any]:
    """Without a model's name it is the config of an endpoint for inference components."""
    deployment = experiment.deployment
    scaling = settings.autoscaling
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "InstanceType": resolved.instance_type,
        "InitialInstanceCount": settings.instance_count,
        "ModelDataDownloadTimeoutInSeconds": resolved.download_timeout,
        "ContainerStartupHealthCheckTimeoutInSeconds": resolved.startup_timeout,
        "VolumeSizeInGB": resolved.volume_gb,
        "InferenceAmiVersion": settings.inference_ami or resolved.ami,
        "ModelName": model_name,
    }
    top: dict[str, Any] = {"KmsKeyId": deployment.kms_key}
    if model_name is None:
        assert scaling is not None
        bounds = {"MinInstanceCount": scaling.min, "MaxInstanceCount": scaling.max}
        variant["ManagedInstanceScaling"] = {"Status": "ENABLED", **bounds}
        isolation = deployment.network_isolation
        top["ExecutionRoleArn"] = deployment.role_arn
        top["EnableNetworkIsolation"] = resolved.network_isolation if isolation is None else isolation
        top |= _vpc(experiment)
    return {"ProductionVariants": [_given(variant)], **_given(top)}


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _component_request(draft: Blueprint, resolved: Resolved) -> dict[str, Any]:
    if resolved.memory_mb is None:
        raise ConfigError(
            f"{draft.role}: JumpStart does not say what memory a copy of {resolved.model_id} needs, so it cannot "
            "scale to zero",
            hint=f"set deployment.{draft.role}.autoscaling.min to 1, or leave autoscaling out",
        )
    needs = {
        "MinMemoryRequiredInMb": resolved.memory_mb,
        "NumberOfAcceleratorDevicesRequired": resolved.accelerators,
    }
    return {
        "VariantName": VARIANT,
        "Specification": {"ModelName": draft.model_name, "ComputeResourceRequirements": _given(needs)},
        "RuntimeConfig": {"CopyCount": 1},
    }


# --- differences -----------------------------------------------------------------------------------------

# Told by the other members: these names are hashes of them.
_NAMES: Final = ("ModelName",)


def differences(
    blueprint: Blueprint, config: Mapping[str, Any], model: Mapping[str, Any] | None
) -> list[str]:
    """Where an endpoint's config and model, as Describe gives them, are not what the blueprint asks for.

    Members that the service adds are no difference, but a variable in the environment is.
    """
    found = [*_compare(blueprint.config, config), *_compare(blueprint.model, model or {})]
    wanted_env = blueprint.model["PrimaryContainer"]["Environment"]
    env = (model or {}).get("PrimaryContainer", {}).get("Environment", {})
    found += [
        f"environment {name}: the endpoint has {_shown(name, env[name])}, the experiment has none"
        for name in env
        if name not in wanted_env
    ]
    if "VpcConfig" not in blueprint.model and (model or {}).get("VpcConfig"):
        found.append("VpcConfig: the endpoint has one, the experiment has none")
    return found


def _compare(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    has = dict(_leaves(there))
    return [
        f"{path}: the endpoint has {_shown(path, has.get(path))}, the experiment asks for {_shown(path, value)}"
        for path, value in _leaves(wanted)
        if path.rpartition(".")[2] not in _NAMES and has.get(path) != value
    ]


def _shown(name: str, value: object) -> str:
    """A value in words, but for that of a variable which holds a secret."""
    if value is None:
        return "none"
    return "another one" if SECRET_VARIABLE.search(name.rpartition(".")[2]) else str(value)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value with its path; lists of plain values count as one, in any order."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _leaves(member, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, member in enumerate(value):
            yield from _leaves(member, f"{path}[{number}]" if number else path)
    else:
        yield path, sorted(value) if isinstance(value, list) else value


# --- payload families ------------------------------------------------------------------------------------

_KEYS: Final[Mapping[Role, tuple[tuple[str, str], ...]]] = {
    "embedding": (("text_inputs", "huggingface"), ("input", "openai")),
    "generation": (("messages", "chat"), ("prompt", "completions"), ("inputs", "text")),
    "reranking": (("texts", "tei"),),
}
# By the container's image, where no example tells.
_IMAGES: Final[Mapping[Role, tuple[tuple[str, str], ...]]] = {
    "embedding": (("tei", "tei"), ("huggingface-pytorch-inference", "huggingface"), ("vllm", "openai")),
    "generation": (("tgi", "text"), ("djl-inference", "chat"), ("vllm", "chat")),
    "reranking": (("tei", "tei"),),
}


def payload_family(role: Role, examples: Sequence[Any], image: str) -> str | None:
    """The payload family that a model's example requests are of; None: none that ragctl speaks.

    `inputs` alone is said by several containers of embedding models: there the image decides.
    """
    keys = {key for example in examples if isinstance(example, Mapping) for key in example}
    repository = image.rpartition("/")[2].partition(":")[0]
    told = [name for key, name in _KEYS[role] if key in keys] + [
        name for part, name in _IMAGES[role] if part in repository
    ]
    return told[0] if told else None
