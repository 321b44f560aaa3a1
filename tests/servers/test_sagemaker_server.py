"""The SageMaker control plane server: judged by moto where moto is right, by the API reference where it is not."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from tests.servers.aws_json import from_cbor, to_cbor
from tests.servers.clients import connect, refused
from tests.servers.sagemaker import SageMakerServer
from tests.servers.sagemaker_things import Fate

ROLE = "arn:aws:iam::123456789012:role/models"
VARIANT = {
    "VariantName": "AllTraffic",
    "ModelName": "m",
    "InstanceType": "ml.g4dn.xlarge",
    "InitialInstanceCount": 1,
}
SOURCE = {"S3Uri": "s3://b/m/", "S3DataType": "S3Prefix", "CompressionType": "None"}
CONTAINER = {"Image": "1.dkr.ecr.eu-west-1.amazonaws.com/i:1", "ModelDataSource": {"S3DataSource": SOURCE}}
TAGS = [{"Key": "ragctl:stack", "Value": "s"}]


@pytest.fixture
def server() -> Iterator[SageMakerServer]:
    """A server that must not be asked anything unknown."""
    with SageMakerServer() as server:
        yield server
    assert (server.unexpected, server.broken) == ([], [])


@pytest.fixture
def clients(server: SageMakerServer) -> Iterator[Callable[[str], Any]]:
    """Make clients of a service at the server."""
    with ExitStack() as stack:
        yield lambda service: stack.enter_context(connect(service, server.url))


@pytest.fixture
def client(clients: Callable[[str], Any]) -> Any:
    """A client of sagemaker."""
    return clients("sagemaker")


def make(client: Any) -> None:
    """A model, a config and an endpoint."""
    client.create_model(ModelName="m", PrimaryContainer=CONTAINER, ExecutionRoleArn=ROLE, Tags=TAGS)
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[VARIANT], Tags=TAGS)
    client.create_endpoint(EndpointName="e", EndpointConfigName="c", Tags=TAGS)


def story(client: Any) -> list[Any]:
    """A life told in what the service answers, without times and what only one of the servers says."""
    told: list[Any] = []

    def note(operation: str, *members: str, **request: Any) -> None:
        try:
            answer = getattr(client, operation)(**request)
            told.append((operation, [answer.get(member) for member in members]))
        except ClientError as error:
            words = error.response["Error"]["Message"].replace("'", '"').partition('"')[0].strip()
            told.append((operation, error.response["Error"]["Code"], words))

    make(client)
    note("describe_model", "ModelName", "ExecutionRoleArn", ModelName="m")
    note("describe_endpoint_config", "EndpointConfigName", EndpointConfigName="c")
    client.describe_endpoint(EndpointName="e")
    note("describe_endpoint", "EndpointName", "EndpointConfigName", "EndpointStatus", EndpointName="e")
    note("list_tags", "Tags", ResourceArn=client.describe_endpoint(EndpointName="e")["EndpointArn"])
    told.append([row["ModelName"] for row in client.list_models(NameContains="m")["Models"]])
    told.append(client.list_endpoints(NameContains="nothing")["Endpoints"])
    note("delete_endpoint", EndpointName="e")
    with suppress(ClientError):  # ours is being deleted for a while
        client.describe_endpoint(EndpointName="e")
    note("describe_endpoint", EndpointName="e")
    note("delete_endpoint_config", EndpointConfigName="c")
    note("delete_model", ModelName="m")
    return told


def test_a_life_is_told_as_moto_tells_it(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create, look, list, tag, delete: the same answers from a server that nobody here wrote."""
    ours = story(client)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        import boto3

        theirs = story(boto3.client("sagemaker", region_name="eu-west-1"))
    assert ours == theirs


def test_an_endpoint_comes_up_in_states(client: Any) -> None:
    """Creating first; moto knows InService only."""
    make(client)
    states = [client.describe_endpoint(EndpointName="e")["EndpointStatus"] for _ in range(3)]
    assert states == ["Creating", "InService", "InService"]


def test_an_endpoint_fails_with_a_reason(server: SageMakerServer, client: Any) -> None:
    """And keeps its name."""
    server.fates["e"] = Fate("Failed", reason="no capacity")
    make(client)
    client.describe_endpoint(EndpointName="e")
    described = client.describe_endpoint(EndpointName="e")
    assert (described["EndpointStatus"], described["FailureReason"]) == ("Failed", "no capacity")
    message = refused(client, "create_endpoint", EndpointName="e", EndpointConfigName="c")
    assert message.startswith("Cannot create already existing endpoint")


@pytest.mark.parametrize("operation", ["create_model", "create_endpoint_config"])
def test_names_are_taken_once(client: Any, operation: str) -> None:
    """Moto overwrites."""
    make(client)
    request: dict[str, Any] = {"ModelName": "m", "PrimaryContainer": CONTAINER}
    if operation != "create_model":
        request = {"EndpointConfigName": "c", "ProductionVariants": [VARIANT]}
    assert "already existing" in refused(client, operation, **request)


def test_what_is_not_there_is_not_found(client: Any) -> None:
    """In the words of the service, which are a ValidationException's."""
    requests: tuple[tuple[str, dict[str, Any]], ...] = (
        ("describe_model", {"ModelName": "x"}),
        ("delete_endpoint", {"EndpointName": "x"}),
        ("create_endpoint", {"EndpointName": "e", "EndpointConfigName": "x"}),
        ("create_endpoint_config", {"EndpointConfigName": "c", "ProductionVariants": [VARIANT]}),
    )
    for operation, request in requests:
        assert refused(client, operation, **request).startswith("Could not find")


def test_requests_are_checked_against_the_model(client: Any) -> None:
    """boto3 does not check patterns and enums."""
    assert "must match" in refused(client, "create_model", ModelName="not_a_name", PrimaryContainer=CONTAINER)


def test_gated_weights_need_the_acceptance(client: Any) -> None:
    """As the service refuses them; no client does."""
    gated = {**SOURCE, "S3Uri": "s3://jumpstart-private-cache-prod-eu-west-1/x/"}
    container = {**CONTAINER, "ModelDataSource": {"S3DataSource": gated}}
    assert "agreement" in refused(client, "create_model", ModelName="m", PrimaryContainer=container)
    gated["ModelAccessConfig"] = {"AcceptEula": True}  # type: ignore[assignment] # a member of another type
    client.create_model(ModelName="m", PrimaryContainer=container)


def test_a_limit_shows_at_the_endpoint(server: SageMakerServer, client: Any) -> None:
    """Model and config exist by then."""
    server.limits["ml.g4dn.xlarge"] = 0
    with pytest.raises(ClientError) as caught:
        make(client)
    assert caught.value.response["Error"]["Code"] == "ResourceLimitExceeded"
    assert server.existing() == ["endpoint-config/c", "model/m"]


def test_an_update_goes_over_to_the_new_config(client: Any) -> None:
    """The old one serves until then; nothing else may be done meanwhile."""
    make(client)
    for _ in range(2):
        client.describe_endpoint(EndpointName="e")
    client.create_endpoint_config(EndpointConfigName="c2", ProductionVariants=[VARIANT])
    client.update_endpoint(EndpointName="e", EndpointConfigName="c2")
    assert "in-progress" in refused(client, "delete_endpoint", EndpointName="e")
    seen = [client.describe_endpoint(EndpointName="e") for _ in range(2)]
    assert [(d["EndpointStatus"], d["EndpointConfigName"]) for d in seen] == [
        ("Updating", "c"),
        ("InService", "c2"),
    ]


def test_the_wrong_order_is_noted(server: SageMakerServer, client: Any) -> None:
    """The service lets a config go under its endpoint, and one no longer sees what the endpoint costs."""
    make(client)
    client.delete_endpoint_config(EndpointConfigName="c")
    assert server.wrong_order == ["EndpointConfig c before Endpoint e"]


def test_lists_come_in_pages(client: Any) -> None:
    """Two to a page, so that whoever does not turn pages is found out."""
    for name in "abcde":
        client.create_model(ModelName=name, PrimaryContainer=CONTAINER)
    assert len(client.list_models()["Models"]) == 2
    pages = client.get_paginator("list_models").paginate()
    assert [row["ModelName"] for page in pages for row in page["Models"]] == list("abcde")


def test_tags_are_searched(clients: Callable[[str], Any]) -> None:
    """By key and value, over CBOR, in pages."""
    make(clients("sagemaker"))
    tagging = clients("resourcegroupstaggingapi")
    types = ["sagemaker:model", "sagemaker:endpoint", "sagemaker:endpoint-config"]

    def found(*values: str) -> list[str]:
        filters = [{"Key": "ragctl:stack", "Values": list(values)}]
        pages = tagging.get_paginator("get_resources").paginate(TagFilters=filters, ResourceTypeFilters=types)
        rows = [row["ResourceARN"] for page in pages for row in page["ResourceTagMappingList"]]
        return sorted(arn.rpartition(":")[2] for arn in rows)

    assert found() == found("s") == ["endpoint-config/c", "endpoint/e", "model/m"]
    assert found("other") == []


def test_a_component_needs_its_endpoint_in_service(server: SageMakerServer, client: Any) -> None:
    """And takes a while itself."""
    make(client)
    request: dict[str, Any] = {
        "InferenceComponentName": "i",
        "EndpointName": "e",
        "VariantName": "AllTraffic",
        "Specification": {"ModelName": "m", "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 1024}},
    }
    assert "not in service" in refused(client, "create_inference_component", **request)
    for _ in range(2):
        client.describe_endpoint(EndpointName="e")
    client.create_inference_component(**request)
    seen = [client.describe_inference_component(InferenceComponentName="i") for _ in range(2)]
    assert [d["InferenceComponentStatus"] for d in seen] == ["Creating", "InService"]
    client.delete_endpoint(EndpointName="e")
    assert server.wrong_order == ["Endpoint e before InferenceComponent i"]


def test_scaling(clients: Callable[[str], Any]) -> None:
    """A target with policies; it takes them with it, and what is not there is an error of its own."""
    make(clients("sagemaker"))
    scaling = clients("application-autoscaling")
    target: dict[str, Any] = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/e/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    assert "at least 1" in refused(
        scaling, "register_scalable_target", **target, MinCapacity=0, MaxCapacity=1
    )
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2)
    scaling.put_scaling_policy(**target, PolicyName="p", PolicyType="StepScaling")
    assert len(scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]) == 1
    scaling.deregister_scalable_target(**target)
    assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
    refused(scaling, "deregister_scalable_target", code="ObjectNotFoundException", **target)


JSON = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(JSON)
def test_cbor_reads_back(value: Any) -> None:
    """What the server writes is what botocore's parser reads; a member that is null it leaves out."""
    assert from_cbor(to_cbor(value)) == value
