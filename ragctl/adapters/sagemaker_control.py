"""The control plane of SageMaker: models, endpoint configs, endpoints and inference components, with their tags.

Every call is one AWS call with its errors in our tree; what is to be made and removed, and when, is decided in
deploy.py, inventory.py and teardown.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from botocore.exceptions import ClientError

from ragctl.adapters.autoscaling import Scaling
from ragctl.adapters.aws import aws_errors, client, error_text
from ragctl.deployment import STACK_TAG, Kind, Ref
from ragctl.errors import NotFound

if TYPE_CHECKING:
    from ragctl.config import Experiment


class _Names(NamedTuple):
    """How the API calls things of one kind."""

    operation: str  # as in DescribeModel
    method: str  # as in describe_model
    name: str
    arn: str
    listed: str


_KINDS: Final[Mapping[Kind, _Names]] = {
    "model": _Names("Model", "model", "ModelName", "ModelArn", "Models"),
    "endpoint-config": _Names(
        "EndpointConfig", "endpoint_config", "EndpointConfigName", "EndpointConfigArn", "EndpointConfigs"
    ),
    "endpoint": _Names("Endpoint", "endpoint", "EndpointName", "EndpointArn", "Endpoints"),
    "inference-component": _Names(
        "InferenceComponent",
        "inference_component",
        "InferenceComponentName",
        "InferenceComponentArn",
        "InferenceComponents",
    ),
}


class ControlPlane:
    """One account and region, with the scaling of its endpoints."""

    def __init__(self, sagemaker: Any, tagging: Any, scaling: Scaling) -> None:
        """Take boto3 clients of sagemaker and resourcegroupstaggingapi."""
        self._sagemaker = sagemaker
        self._tagging = tagging
        self.scaling = scaling

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The account and region of the `aws` section."""
        tagging = client("resourcegroupstaggingapi", experiment)
        return cls(client("sagemaker", experiment), tagging, Scaling.from_config(experiment))

    def create(self, ref: Ref, request: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Make it. One of that name that is there already counts as made: the SDK repeats a call whose reply was
        lost, and names tell contents (see blueprint.py).
        """
        names = _KINDS[ref.type]
        with aws_errors(f"sagemaker:Create{names.operation}", str(ref)):
            try:
                getattr(self._sagemaker, f"create_{names.method}")(
                    **{names.name: ref.name}, **request, Tags=_as_list(tags)
                )
            except ClientError as error:
                if "already existing" not in error_text(error):
                    raise

    def update_endpoint(self, endpoint: str, config: str) -> None:
        """Begin to put the endpoint onto another config; the old instances serve until the new ones do."""
        with aws_errors("sagemaker:UpdateEndpoint", f"endpoint {endpoint}"):
            self._sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config)

    def describe(self, ref: Ref) -> Mapping[str, Any] | None:
        """What the service says of it; None: there is no such thing."""
        if ref.type not in _KINDS:
            return self.scaling.describe(ref)
        names = _KINDS[ref.type]
        try:
            with aws_errors(f"sagemaker:Describe{names.operation}", str(ref)):
                described: Mapping[str, Any] = getattr(self._sagemaker, f"describe_{names.method}")(
                    **{names.name: ref.name}
                )
        except NotFound:
            return None
        return described

    def delete(self, ref: Ref) -> bool:
        """Remove it, or begin to; False: there was no such thing."""
        if ref.type not in _KINDS:
            return self.scaling.delete(ref)
        names = _KINDS[ref.type]
        try:
            with aws_errors(f"sagemaker:Delete{names.operation}", str(ref)):
                getattr(self._sagemaker, f"delete_{names.method}")(**{names.name: ref.name})
        except NotFound:
            return False
        return True

    def tags(self, arn: str) -> dict[str, str]:
        """The tags of an endpoint, config, model or component."""
        with aws_errors("sagemaker:ListTags", arn):
            pages = self._sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
            return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}

    def add_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        """Set these tags, keeping the others."""
        with aws_errors("sagemaker:AddTags", arn):
            self._sagemaker.add_tags(ResourceArn=arn, Tags=_as_list(tags))

    def remove_tags(self, arn: str, *keys: str) -> None:
        """Remove these tags; absent ones are fine."""
        with aws_errors("sagemaker:DeleteTags", arn):
            self._sagemaker.delete_tags(ResourceArn=arn, TagKeys=list(keys))

    def named_like(self, part: str) -> Iterator[Ref]:
        """All whose name holds `part`."""
        for kind in _KINDS:
            yield from self._listed(kind, f"names like {part}", NameContains=part)

    def listed(self, kind: Kind) -> list[Ref]:
        """All of a kind in the account and region, whoever made it."""
        return self._listed(kind, "all")

    def _listed(self, kind: Kind, what: str, **options: str) -> list[Ref]:
        names = _KINDS[kind]
        with aws_errors(f"sagemaker:List{names.operation}s", what):
            pages = self._sagemaker.get_paginator(f"list_{names.method}s").paginate(**options)
            return [Ref(kind, item[names.name]) for page in pages for item in page[names.listed]]

    def tagged(self, stack: str | None = None) -> Iterator[Ref]:
        """All that carries our tag, of one stack or of any.

        The tagging API lags behind: it may miss what has just been made and name what has just been removed.
        """
        values = {"Values": [stack]} if stack else {}
        filters: dict[str, Any] = {
            "TagFilters": [{"Key": STACK_TAG, **values}],
            "ResourceTypeFilters": [f"sagemaker:{kind}" for kind in _KINDS],
        }
        with aws_errors("tag:GetResources", f"resources with the tag {STACK_TAG}"):
            pages = self._tagging.get_paginator("get_resources").paginate(**filters)
            found = [item["ResourceARN"] for page in pages for item in page["ResourceTagMappingList"]]
        for arn in found:
            kind, _, name = arn.split(":", 5)[5].partition("/")
            yield Ref(kind, name)

    def tags_of(self, ref: Ref, described: Mapping[str, Any]) -> dict[str, str]:
        """The tags of what `describe` gave; scaling has none of its own that count."""
        return self.tags(described[_KINDS[ref.type].arn]) if ref.type in _KINDS else {}

    def arn(self, ref: Ref) -> str | None:
        """Its ARN; None when it does not exist, or is no model, config, endpoint or component."""
        described = self.describe(ref) if ref.type in _KINDS else None
        return None if described is None else str(described[_KINDS[ref.type].arn])


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
