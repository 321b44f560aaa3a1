"""AWS manners in one place: sessions and clients from the `aws` section, and AWS's errors in our tree.

`client` is the only maker of boto3 clients, `aws_errors` the only place where botocore's exceptions are read.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.exceptions as bc
import botocore.session
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.eventstream import ParserError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from ragctl import __version__, repeats
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

if TYPE_CHECKING:
    from ragctl.config import Aws, Experiment

ATTEMPTS: Final = 5  # calls in all, the first one included, before a throttle or a broken connection is final

# boto3 clients may be shared between threads, but are not to be made by several threads at once.
_making = threading.Lock()
_sessions: dict[Aws, Any] = {}
_clients: dict[tuple[str, Aws, str], Any] = {}

# --- sessions and clients --------------------------------------------------------------------------------


def client(service: str, experiment: Experiment, *, region_name: str | None = None, **config: Any) -> Any:
    """The boto3 client of a service such as "s3vectors", made once per `aws` section and settings.

    `region_name` is for a service that is not in the experiment's region.

    `config` holds members of botocore's Config that differ from ours: `read_timeout`, `retries` and so on.
    Raises ConfigError when there is no region or the profile is unknown, CredentialsError when a role is to be
    assumed and there is nothing to assume it with. Nothing is called.
    """
    aws, ingest = experiment.aws, experiment.ingest
    settings: dict[str, Any] = {
        "max_pool_connections": max(10, ingest.embed_concurrency + ingest.put_concurrency),
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        **config,
    }
    key = (f"{service}@{region_name or ''}", aws, repr(sorted(settings.items())))
    with _making:
        if key not in _clients:
            with aws_errors("making a client", service):
                made = _session(aws).client(
                    service,
                    region_name=region_name or _region(aws),
                    endpoint_url=getattr(aws.endpoints, service.replace("-", "_"), None),
                    config=_config(aws, **settings),
                )
                made.meta.events.register("after-call", _count_repeats)
                _clients[key] = made
        return _clients[key]


def session(experiment: Experiment) -> Any:
    """A boto3 session of the `aws` section, its region set, for an SDK that makes its own clients."""
    name = region(experiment)
    with _making:
        core = botocore.session.Session(profile=experiment.aws.profile)
        core._credentials = _session(experiment.aws).get_credentials()  # noqa: SLF001 - botocore has no setter for these
        return boto3.Session(botocore_session=core, region_name=name)


def region(experiment: Experiment) -> str:
    """The region that calls go to. Raises ConfigError when neither config nor environment names one."""
    with _making:
        return _region(experiment.aws)


def partition(experiment: Experiment) -> str:
    """The ARN partition of the region: aws, aws-cn, aws-us-gov ..."""
    name = region(experiment)
    with _making, aws_errors("endpoint lookup", f"region {name}"):
        return str(_session(experiment.aws).get_partition_for_region(name))


def forget() -> None:
    """Drop the sessions and clients made so far, so that changed variables of the environment count."""
    with _making:
        _clients.clear()
        _sessions.clear()


def _count_repeats(parsed: Mapping[str, Any], **_: object) -> None:
    """Note what the SDK tried again by itself; it does not tell for which reason."""
    repeats.count(retries=parsed["ResponseMetadata"].get("RetryAttempts", 0))


def _config(aws: Aws, **settings: Any) -> Config:
    if aws.use_fips:  # left unset otherwise, so that the environment can still ask for it
        settings["use_fips_endpoint"] = True
    return Config(user_agent_extra=f"ragctl/{__version__}", **settings)


def _region(aws: Aws) -> str:
    # The SDK for Python knows AWS_DEFAULT_REGION alone; containers and the other SDKs set AWS_REGION.
    name = aws.region or _session(aws).region_name or os.environ.get("AWS_REGION")
    if not name:
        raise ConfigError("no AWS region is set", hint="set aws.region in the config, or AWS_DEFAULT_REGION")
    return str(name)


def _session(aws: Aws) -> Any:
    if aws not in _sessions:
        with aws_errors("reading the AWS configuration", f"profile {aws.profile or 'default'}"):
            session = boto3.Session(profile_name=aws.profile, region_name=aws.region)
            _sessions[aws] = _assume(session, aws, aws.role_arn) if aws.role_arn else session
    return _sessions[aws]


def _assume(source: Any, aws: Aws, role_arn: str) -> Any:
    """A session with the role's credentials, fetched at the first call and refreshed before they expire."""
    if source.get_credentials() is None:
        raise bc.NoCredentialsError
    region_name = source.region_name or os.environ.get("AWS_REGION")
    assume_role = AssumeRoleCredentialFetcher(
        client_creator=partial(
            source.client, region_name=region_name, endpoint_url=aws.endpoints.sts, config=_config(aws)
        ),
        source_credentials=source.get_credentials(),
        role_arn=role_arn,
        extra_args={"RoleSessionName": "ragctl"}
        | ({"ExternalId": aws.external_id} if aws.external_id else {}),
    )
    core = botocore.session.Session(profile=aws.profile)
    core._credentials = DeferredRefreshableCredentials(  # noqa: SLF001 - botocore has no setter for these
        refresh_using=assume_role.fetch_credentials, method="assume-role"
    )
    return boto3.Session(botocore_session=core, region_name=region_name)


def json_body(request: Mapping[str, Any], where: str) -> bytes:
    """The JSON body of a request to a model. InputRefused, naming `where`, when a text of it is no valid Unicode."""
    try:
        return json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputRefused(f"{where}: a text holds half a surrogate pair, which no encoding has") from error


# --- errors ----------------------------------------------------------------------------------------------

CREDENTIAL_CODES: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "UnauthorizedException",
    }
)
REGION_CODES: Final = frozenset(
    {
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "301",
    }
)
NOT_FOUND_CODES: Final = frozenset(
    {
        "ResourceNotFound",
        "ResourceNotFoundException",
        "NotFound",
        "NotFoundException",
        "NoSuchBucket",
        "NoSuchKey",
        "NoSuchResourceException",
        "ObjectNotFoundException",
    }
)
QUOTA_CODES: Final = frozenset(
    {
        "ServiceQuotaExceededException",
        "ResourceLimitExceeded",
        "LimitExceededException",
        "LimitExceededFault",
        "QuotaExceededException",
        "TooManyBuckets",
    }
)
THROTTLE_CODES: Final = frozenset(
    {
        "TooManyRequestsException",
        "SlowDown",
        "RequestLimitExceeded",
        "ProvisionedThroughputExceededException",
        "BandwidthLimitExceeded",
        "PriorRequestNotComplete",
        "ModelNotReadyException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "RequestThrottled",
        "RequestThrottledException",
    }
)
# A resource that is not there, told by the words alone: SageMaker answers ValidationException or ValidationError
# ("Could not find endpoint", "Endpoint x of account y not found"), Bedrock an invalid model identifier.
MISSING = re.compile(r"could not find|not found|does not exist|model identifier is invalid", re.IGNORECASE)

# Where the permission is not called like the operation (Service Authorization Reference).
PERMISSIONS: Final = {
    "bedrock:Converse": "bedrock:InvokeModel",
    "bedrock:ConverseStream": "bedrock:InvokeModelWithResponseStream",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:DeleteObjects": "s3:DeleteObject",
}

CREDENTIAL_ERRORS: Final = (
    bc.NoCredentialsError,
    bc.PartialCredentialsError,
    bc.CredentialRetrievalError,
    bc.MetadataRetrievalError,
    bc.RefreshWithMFAUnsupportedError,
    bc.LoginError,
    bc.SSOError,
    bc.TokenRetrievalError,
    bc.NoAuthTokenError,
)
CONFIG_ERRORS: Final = (
    bc.ProfileNotFound,
    bc.ConfigNotFound,
    bc.ConfigParseError,
    bc.InvalidConfigError,
    bc.InvalidChecksumConfigError,
    bc.InvalidDefaultsMode,
    bc.InvalidEndpointConfigurationError,
    bc.InvalidEndpointDiscoveryConfigurationError,
    bc.InvalidIMDSEndpointError,
    bc.InvalidIMDSEndpointModeError,
    bc.InvalidProxiesConfigError,
    bc.InvalidRegionError,
    bc.InvalidRetryConfigurationError,
    bc.InvalidS3AddressingStyleError,
    bc.InvalidS3UsEast1RegionalEndpointConfigError,
    bc.InvalidSTSRegionalEndpointsConfigError,
    bc.BaseEndpointResolverError,
    bc.EndpointProviderError,
    bc.ServiceNotInRegionError,
    bc.UnknownRegionError,
    bc.UnknownCredentialError,
    bc.UnknownTokenProviderError,
    bc.UnknownSignatureVersionError,
    bc.UnsupportedSignatureVersionError,
    bc.MissingDependencyException,
    bc.DataNotFoundError,
    bc.ApiVersionNotFoundError,
    bc.UnknownServiceStyle,
    bc.UnsupportedServiceProtocolsError,
)
CONNECTION_ERRORS: Final = (
    bc.ConnectionError,
    bc.HTTPClientError,
    bc.IncompleteReadError,
    bc.ChecksumError,
    bc.FlexibleChecksumError,
    bc.AwsChunkedWrapperError,
    bc.UnseekableStreamError,
    bc.CapacityNotAvailableError,
    bc.MD5UnavailableError,
    HTTPError,  # urllib3's own, which come out of event streams as they are
    ParserError,
    ResponseParserError,
)
REQUEST_ERRORS: Final = (  # refused by the SDK before anything was sent; their texts quote the values
    bc.ParamValidationError,
    bc.ValidationError,
    bc.AliasConflictParameterError,
    bc.MissingParametersError,
    bc.InvalidDNSNameError,
    bc.InvalidHostLabelError,
    bc.UnsupportedOutpostResourceError,
    bc.UnsupportedS3AccesspointConfigurationError,
    bc.UnsupportedS3ArnError,
    bc.UnsupportedS3ConfigurationError,
    bc.UnsupportedS3ControlArnError,
    bc.UnsupportedS3ControlConfigurationError,
    bc.PaginationError,
    bc.WaiterError,
    Boto3Error,
)


@contextmanager
def aws_errors(action: str, resource: str) -> Iterator[None]:
    """Turn what botocore raises inside into our tree, naming the call and what it was on.

    `action` is "service:Operation", for example "s3vectors:PutVectors"; `resource` is such as "index b/i".
    The vendor's exception stays the cause. Nothing of a request's content gets into a message.
    """
    try:
        yield
    except bc.ClientError as error:
        raise client_error(error, action, resource) from error
    except (bc.BotoCoreError, HTTPError, ParserError, ResponseParserError, Boto3Error) as error:
        raise _local_error(error, f"{action} on {resource}") from error


def client_error(error: bc.ClientError, action: str, resource: str) -> RagctlError:
    """What a service's refusal is in our tree."""
    code, said = error_code(error), error_text(error)
    operation = str(error.operation_name)
    if operation.startswith("AssumeRole") and not action.endswith(f":{operation}"):
        action, resource = f"sts:{operation}", "the role to assume"
    where = f"{action} on {resource}"
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code in CREDENTIAL_CODES or status == 401:
        # The text is left out: for a wrong signature it quotes headers, the session token among them.
        return CredentialsError(f"{where}: the credentials are not accepted ({code})", hint=_LOG_IN)
    if code in REGION_CODES:
        return ServiceError(
            f"{where}: wrong region ({code})", hint=f"set aws.region to the region of {resource}"
        )
    if code in QUOTA_CODES:
        return QuotaExceeded(f"{where}: a quota is used up: {said}", hint="ask for more in Service Quotas")
    if code in THROTTLE_CODES or code.startswith("Throttl") or status in (429, 503):
        return Throttled(f"{where}: still throttled after the retries ({code}): {said}", hint=_SLOWER)
    if code in NOT_FOUND_CODES or status == 404 or (code.startswith("Validation") and MISSING.search(said)):
        return NotFound(f"{where}: does not exist: {said}", hint="check the name, aws.region and the account")
    if code.startswith("AccessDenied") or status == 403:
        permission = PERMISSIONS.get(action, action)
        return PermissionDenied(f"{where}: access denied: {said}", hint=f"allow {permission} on {resource}")
    return ServiceError(f"{where}: {code}: {said}")


def error_code(error: bc.ClientError) -> str:
    """The service's name for an error, such as "ThrottlingException"; an event stream writes it in lower case."""
    code = str(error.response.get("Error", {}).get("Code", "Unknown"))
    return code[:1].upper() + code[1:]


def error_text(error: bc.ClientError) -> str:
    """What the service says about an error on one line, 300 characters at most.

    Empty for a ModelError: a model's container likes to quote its input, which is somebody's document.
    """
    if error_code(error) in ("ModelError", "ModelErrorException", "ModelStreamErrorException"):
        return _model_error_text(error.response)
    details = error.response.get("Error", {})
    said = str(details.get("Message") or error.response.get("message") or "the service says nothing more")
    return " ".join(said.split())[:300]


def _model_error_text(response: dict[str, Any]) -> str:
    status = response.get("OriginalStatusCode") or response.get("originalStatusCode") or "no status"
    log = response.get("LogStreamArn")
    return f"the model answered {status}" + (f", its log is {log}" if log else "")


_LOG_IN: Final = "log in again (for example `aws sso login`), or check the profile and the AWS_* variables"
_SLOWER: Final = "wait, lower the concurrency under ingest:, or ask for a higher quota"


def _local_error(error: Exception, where: str) -> RagctlError:
    """What a failure on this side of the wire is in our tree."""
    if isinstance(error, CREDENTIAL_ERRORS):
        # No text here either: a credential process may have printed anything.
        what = "no credentials" if isinstance(error, bc.NoCredentialsError) else "no valid credentials"
        return CredentialsError(f"{where}: {what} ({type(error).__name__})", hint=_LOG_IN)
    if isinstance(error, CONFIG_ERRORS):
        return ConfigError(f"{where}: {error}", hint="check the aws section and the AWS_* variables")
    if isinstance(error, REQUEST_ERRORS):
        return ServiceError(f"{where}: {type(error).__name__}{_parameters(error)}")
    if isinstance(error, bc.EndpointConnectionError | bc.ConnectTimeoutError):
        hint = "check the network, aws.region and aws.endpoints; the service may not be in this region"
        return ServiceError(f"{where}: {error}", hint=hint)
    if isinstance(error, CONNECTION_ERRORS):
        return ServiceError(f"{where}: the connection failed ({type(error).__name__}): {error}")
    return ServiceError(f"{where}: {type(error).__name__}")


def _parameters(error: Exception) -> str:
    """Which parameters the SDK refused, without their values."""
    names = sorted(set(re.findall(r"parameter:? \"?([A-Za-z][\w.\[\]]*)", str(error))))
    return f": parameter {', '.join(names)}" if names else ""
