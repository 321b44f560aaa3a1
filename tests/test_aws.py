"""AWS manners: clients as the config says, and errors that say what, where and what to do."""

import inspect
from collections.abc import Iterator
from typing import Any

import botocore.exceptions as bc
import pytest
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from moto.server import ThreadedMotoServer
from urllib3.exceptions import ProtocolError

from ragctl import __version__
from ragctl.adapters import aws
from ragctl.adapters.aws import aws_errors, client, partition
from ragctl.errors import (
    ConfigError,
    CredentialsError,
    InputRefused,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RagctlError,
    ServiceError,
    Throttled,
)
from tests.experiments import experiment
from tests.servers.http import Fault
from tests.servers.sagemaker_runtime import EmbeddingModel, SageMakerRuntime

SECRET = "wJalrXUtnFEMI-secret"

# Raised by what we never do: stubs, dead API calls, pages and waiters that no model has.
BUGS = (
    bc.StubResponseError,
    bc.UnknownClientMethodError,
    bc.OperationNotPageableError,
    bc.InvalidExpressionError,
    bc.WaiterConfigError,
)


def refusal(code: str, message: str = "no", status: int = 400, operation: str = "PutVectors") -> ClientError:
    """A service's answer as botocore raises it."""
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, operation)


def mapped(
    error: Exception, action: str = "s3vectors:PutVectors", resource: str = "index b/i"
) -> RagctlError:
    """What our tree makes of an error."""
    with pytest.raises(RagctlError) as caught, aws_errors(action, resource):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def runtime() -> Iterator[SageMakerRuntime]:
    """A SageMaker runtime with one endpoint."""
    with SageMakerRuntime({"embedder": EmbeddingModel()}) as server:
        yield server
    assert (server.unexpected, server.broken) == ([], [])


# --- clients ---------------------------------------------------------------------------------------------


def test_no_region_is_a_config_error_with_a_hint() -> None:
    """Without a region nothing is called, and the user learns where to set it."""
    with pytest.raises(ConfigError) as caught:
        client("s3vectors", experiment())
    assert str(caught.value) == "no AWS region is set"
    assert caught.value.hint == "set aws.region in the config, or AWS_DEFAULT_REGION"


@pytest.mark.parametrize(
    ("section", "variable", "expected"),
    [
        ({"region": "eu-central-1"}, "AWS_DEFAULT_REGION", "eu-central-1"),
        ({}, "AWS_DEFAULT_REGION", "us-east-2"),
        ({}, "AWS_REGION", "us-east-2"),
    ],
)
def test_region_comes_from_the_config_and_then_the_environment(
    section: dict[str, str], variable: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config wins; AWS_REGION, which the SDK for Python ignores, counts as well."""
    monkeypatch.setenv(variable, "us-east-2")
    assert client("s3vectors", experiment(aws=section)).meta.region_name == expected


def test_unknown_profile_is_a_config_error() -> None:
    """A profile that is in no file is named."""
    with pytest.raises(ConfigError, match=r"profile nobody.*\(nobody\) could not be found"):
        client("s3vectors", experiment(aws={"profile": "nobody", "region": "eu-west-1"}))


class SentError(Exception):
    """A request got as far as being sent; the text is its address."""


def address(api: Any, operation: str) -> str:
    """Where a client would send a call."""

    def stop(request: Any, **_: object) -> None:
        raise SentError(request.url)

    api.meta.events.register("before-send", stop)
    with pytest.raises(SentError) as caught:
        getattr(api, operation)()
    return str(caught.value)


@pytest.mark.parametrize(
    ("region", "fips", "expected", "host"),
    [
        ("eu-west-1", False, "aws", "https://s3vectors.eu-west-1.api.aws/"),
        ("us-east-1", True, "aws", "https://s3vectors-fips.us-east-1.api.aws/"),
        ("cn-north-1", False, "aws-cn", "https://s3vectors.cn-north-1.api.amazonwebservices.com.cn/"),
        ("us-gov-west-1", True, "aws-us-gov", "https://s3vectors-fips.us-gov-west-1.api.aws/"),
    ],
)
def test_partitions_and_fips_reach_their_own_hosts(
    region: str, fips: bool, expected: str, host: str, keys: None
) -> None:
    """China, GovCloud and FIPS are left to botocore's endpoint rules, and ARNs get their partition."""
    config = experiment(aws={"region": region, "use_fips": fips})
    assert address(client("s3vectors", config), "list_vector_buckets").startswith(host)
    assert partition(config) == expected


def test_endpoint_overrides_from_config_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard variables work by themselves, and the config goes before them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3VECTORS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:2")
    config = experiment(aws={"region": "eu-west-1", "endpoints": {"bedrock_runtime": "http://127.0.0.1:3"}})
    assert client("s3vectors", config).meta.endpoint_url == "http://127.0.0.1:1"
    assert client("bedrock-runtime", config).meta.endpoint_url == "http://127.0.0.1:3"


def test_clients_are_shared_until_forgotten_and_named_in_the_user_agent() -> None:
    """One pool of connections per service and settings, large enough for all workers."""
    config = experiment(aws={"region": "eu-west-1"}, ingest={"embed_concurrency": 40, "put_concurrency": 8})
    first = client("s3vectors", config)
    assert client("s3vectors", config) is first
    assert client("s3vectors", config, read_timeout=5) is not first
    assert first.meta.config.max_pool_connections == 48
    assert first.meta.config.retries == {"mode": "standard", "total_max_attempts": aws.ATTEMPTS}
    assert first.meta.config.user_agent.endswith(f"ragctl/{__version__}")
    aws.forget()
    assert client("s3vectors", config) is not first


def test_role_is_assumed_at_the_first_call_and_not_before(
    keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role's credentials sign what follows; an external id goes along; making a client calls nothing."""
    bodies: list[str] = []
    send = URLLib3Session.send

    def recorded(self: Any, request: Any) -> Any:
        bodies.append(request.body)
        return send(self, request)

    monkeypatch.setattr(URLLib3Session, "send", recorded)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        section = {
            "region": "eu-west-1",
            "role_arn": "arn:aws:iam::123456789012:role/ingest",
            "external_id": "partner",
            "endpoints": {"sts": f"http://{host}:{port}"},
        }
        sts = client("sts", experiment(aws=section))
        assert bodies == []
        assert sts.get_caller_identity()["Arn"] == "arn:aws:sts::123456789012:assumed-role/ingest/ragctl"
    finally:
        server.stop()
    assert "Action=AssumeRole" in bodies[0]
    assert "ExternalId=partner" in bodies[0]


def test_role_without_credentials_to_assume_it_with() -> None:
    """A role needs somebody who assumes it."""
    section = {"region": "eu-west-1", "role_arn": "arn:aws:iam::123456789012:role/ingest"}
    with pytest.raises(
        CredentialsError, match="reading the AWS configuration on profile default: no credentials"
    ):
        client("sts", experiment(aws=section))


# --- errors, as they come over the wire ------------------------------------------------------------------


def invoke(server: SageMakerRuntime, **config: Any) -> RagctlError:
    """The error of a call to the server, made with a client of ours that asks once."""
    settings = experiment(aws={"region": "eu-west-1", "endpoints": {"sagemaker_runtime": server.url}})
    api = client("sagemaker-runtime", settings, retries={"total_max_attempts": 1}, **config)
    with pytest.raises(RagctlError) as caught, aws_errors("sagemaker:InvokeEndpoint", "endpoint embedder"):
        api.invoke_endpoint(EndpointName="embedder", Body=b'{"inputs": ["a"]}')
    return caught.value


def test_no_credentials(runtime: SageMakerRuntime) -> None:
    """An unsigned call is never made; the hint says how to log in."""
    error = invoke(runtime)
    assert isinstance(error, CredentialsError)
    assert str(error) == "sagemaker:InvokeEndpoint on endpoint embedder: no credentials (NoCredentialsError)"
    assert error.hint
    assert "aws sso login" in error.hint


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "ExpiredTokenException", CredentialsError),
        (403, "AccessDeniedException", PermissionDenied),
        (404, "ResourceNotFoundException", NotFound),
        (400, "ServiceQuotaExceededException", QuotaExceeded),
        (429, "ThrottlingException", Throttled),
        (503, "ServiceUnavailable", Throttled),
        (500, "InternalFailure", ServiceError),
    ],
)
def test_refusals_of_a_service(
    status: int, code: str, expected: type[RagctlError], keys: None, runtime: SageMakerRuntime
) -> None:
    """Each kind of refusal has its place in the tree, and names the call and what it was on."""
    runtime.faults.add(Fault("error", status=status, code=code))
    error = invoke(runtime)
    assert type(error) is expected
    assert str(error).startswith("sagemaker:InvokeEndpoint on endpoint embedder: ")


@pytest.mark.parametrize("fault", [Fault("reset"), Fault("hang", seconds=30), Fault("lost")])
def test_broken_connections(fault: Fault, keys: None, runtime: SageMakerRuntime) -> None:
    """A connection that breaks or says nothing is an error of the service."""
    runtime.faults.add(fault)
    error = invoke(runtime, read_timeout=0.2)
    assert type(error) is ServiceError
    assert "sagemaker:InvokeEndpoint on endpoint embedder: the connection failed" in str(error)


def test_host_that_is_not_there(keys: None) -> None:
    """A wrong region or address is told from a refusal."""
    server = SageMakerRuntime({})
    with server:
        pass
    error = invoke(server)
    assert "Could not connect to the endpoint URL" in str(error)
    assert error.hint
    assert "aws.region" in error.hint


# --- the table -------------------------------------------------------------------------------------------


def exceptions() -> list[type[Exception]]:
    """Every exception that botocore has."""
    classes = [it for it in vars(bc).values() if inspect.isclass(it)]
    errors = [it for it in classes if issubclass(it, Exception) and it is not bc.BotoCoreError]
    return [it for it in errors if issubclass(it, bc.BotoCoreError)]


@pytest.mark.parametrize("exception", exceptions())
def test_every_botocore_exception_has_its_place(exception: type[Exception]) -> None:
    """A new class in botocore must be given a meaning here, not fall through."""
    tables = (aws.CREDENTIAL_ERRORS, aws.CONFIG_ERRORS, aws.CONNECTION_ERRORS, aws.REQUEST_ERRORS, BUGS)
    assert [table for table in tables if issubclass(exception, table)] != []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (bc.NoRegionError(), ConfigError),
        (bc.ProfileNotFound(profile="x"), ConfigError),
        (bc.UnauthorizedSSOTokenError(), CredentialsError),
        (bc.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), CredentialsError),
        (bc.ReadTimeoutError(endpoint_url="https://x"), ServiceError),
        (bc.ParamValidationError(report="x"), ServiceError),
        (ProtocolError("broken"), ServiceError),
    ],
)
def test_exceptions_without_a_reply(error: Exception, expected: type[RagctlError]) -> None:
    """What the SDK finds out by itself is told apart as well."""
    assert type(mapped(error)) is expected


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (
            refusal("InvalidClientTokenId", status=403),
            CredentialsError,
            "are not accepted (InvalidClientTokenId)",
        ),
        (refusal("UnrecognizedClientException"), CredentialsError, "UnrecognizedClientException"),
        (refusal("NoSuchBucket", "The bucket is gone", 404), NotFound, "does not exist: The bucket is gone"),
        (
            refusal("ValidationException", 'Could not find endpoint "e".'),
            NotFound,
            'Could not find endpoint "e".',
        ),
        (
            refusal("ValidationError", "Endpoint e of account 1 not found."),
            NotFound,
            "Endpoint e of account 1",
        ),
        (
            refusal("ValidationException", "The provided model identifier is invalid."),
            NotFound,
            "model identifier",
        ),
        (refusal("PermanentRedirect", status=301), ServiceError, "wrong region (PermanentRedirect)"),
        (refusal("IllegalLocationConstraintException"), ServiceError, "wrong region"),
        (
            refusal("ResourceLimitExceeded", "ml.g5 is at 0"),
            QuotaExceeded,
            "a quota is used up: ml.g5 is at 0",
        ),
        (refusal("SlowDown", status=503), Throttled, "still throttled after the retries (SlowDown)"),
        (refusal("ModelNotReadyException", status=429), Throttled, "ModelNotReadyException"),
        (refusal("throttlingException"), Throttled, "ThrottlingException"),
        (refusal("AccessDenied", "not authorized", 403), PermissionDenied, "access denied: not authorized"),
        (refusal("404", "Not Found", 404), NotFound, "does not exist"),
        (
            refusal("ValidationException", "vector must have length 4"),
            ServiceError,
            "vector must have length 4",
        ),
    ],
)
def test_codes(error: ClientError, expected: type[RagctlError], words: str) -> None:
    """The codes of the services that ragctl calls, event streams' lower case included."""
    found = mapped(error)
    assert type(found) is expected
    assert str(found).startswith("s3vectors:PutVectors on index b/i: ")
    assert words in str(found)


@pytest.mark.parametrize(
    ("action", "permission"),
    [
        ("s3vectors:PutVectors", "s3vectors:PutVectors"),
        ("bedrock:Converse", "bedrock:InvokeModel"),
        ("s3:ListObjectsV2", "s3:ListBucket"),
    ],
)
def test_denied_access_names_the_permission_to_give(action: str, permission: str) -> None:
    """Where the permission is not called like the call, the hint has the permission."""
    found = mapped(refusal("AccessDeniedException", status=403), action, "thing t")
    assert found.hint == f"allow {permission} on thing t"


def test_refused_role_is_not_blamed_on_the_call_that_needed_it() -> None:
    """The credentials of a role are fetched inside of the first call."""
    found = mapped(refusal("AccessDenied", status=403, operation="AssumeRole"))
    assert str(found).startswith("sts:AssumeRole on the role to assume: access denied")


# --- secrets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        refusal(
            "SignatureDoesNotMatch",
            f"The canonical string should have been x-amz-security-token:{SECRET}",
            403,
        ),
        bc.CredentialRetrievalError(provider="custom-process", error_msg=f"printed {SECRET}"),
        bc.ParamValidationError(
            report=f"Invalid type for parameter Body, value: {SECRET}, type: <class 'str'>"
        ),
        refusal("ModelError", f'Received client error (400) with message "{SECRET}"', 424),
    ],
)
def test_secrets_and_content_stay_out_of_messages(error: Exception) -> None:
    """Services and the SDK quote headers, values and inputs; we do not."""
    found = mapped(error)
    assert SECRET not in f"{found} {found.hint}"


def test_refused_parameter_is_named_without_its_value() -> None:
    """The place of the fault is no secret."""
    report = "Invalid type for parameter vectors[0].metadata, value: the text, type: <class 'str'>"
    assert str(mapped(bc.ParamValidationError(report=report))) == (
        "s3vectors:PutVectors on index b/i: ParamValidationError: parameter vectors[0].metadata"
    )


def test_half_a_surrogate_pair_is_refused_as_that_text() -> None:
    """Text that no encoding has is the fault of one input, not of the run."""
    with pytest.raises(InputRefused, match="model m: a text holds half a surrogate pair"):
        aws.json_body({"inputs": ["fine", "\ud800"]}, "model m")
