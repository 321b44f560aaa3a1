"""doctor: everything that an experiment needs, looked at without changing anything.

Each check is one function that says what it found, or raises what a command would end with. `checks` is the table of
them: only those that the experiment needs are run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ragctl import iam, indexes, tenancy
from ragctl.errors import (
    ConfigError,
    CredentialsError,
    MissingExtra,
    NotFound,
    PermissionDenied,
    RagctlError,
    ServiceError,
    StateError,
    Throttled,
)

if TYPE_CHECKING:
    from ragctl.backends import OpenAIEmbedding, OpenAIGeneration
    from ragctl.blueprint import Role
    from ragctl.config import Experiment, Source
    from ragctl.state import State

SDK_FLOOR: Final = (1, 44, 5)  # the first boto3 with text and hybrid search on S3 Vectors
TIMEOUT_S: Final = 10.0
LISTED: Final = 100  # files of a source among which the smallest is read
SERVING: Final = frozenset({"InService", "Updating", "SystemUpdating"})  # an endpoint answers in these states
PACKAGES: Final = {
    "fastembed": "fastembed",
    "eval": "ir_measures",
    "jumpstart": "sagemaker",
    "tokens": "tokenizers",
}

Status = Literal["ok", "missing", "unknown"]
Look = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; `detail` is one line."""

    check: str
    status: Status
    detail: str


class _Unknown(Exception):
    """It cannot be told, and why."""


def examine(experiment: Experiment, path: Path) -> Iterator[Finding]:
    """Run the checks that the experiment from the file `path` needs, in order."""
    lost = False
    for name, on_aws, look in checks(experiment, path):
        if lost and on_aws:
            yield Finding(name, "unknown", "not looked at without credentials")
            continue
        finding = _finding(name, look)
        lost = lost or (name == "credentials" and finding.status != "ok")
        yield finding


def _finding(name: str, look: Look) -> Finding:
    try:
        return Finding(name, "ok", look())
    except _Unknown as reason:
        return Finding(name, "unknown", _line(str(reason)))
    except Throttled as error:
        return Finding(name, "unknown", _line(error.message))
    except RagctlError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return Finding(name, "missing", _line(error.message + hint))
    except OSError as error:
        return Finding(name, "missing", f"{error.filename}: {error.strerror}")


def _line(text: str) -> str:
    """A message on one line: the differences that it lists stand below one another."""
    first, *more = (line.strip() for line in text.splitlines())
    return f"{first}: {'; '.join(more)}" if more else first


def checks(experiment: Experiment, path: Path) -> Iterator[tuple[str, bool, Look]]:
    """The checks of an experiment: name, whether AWS is asked, and the function."""
    from ragctl.check import check

    aws = bool(iam.parts(experiment))

    def experiment_file() -> str:
        check(experiment, path)
        return str(path)

    yield "experiment file", False, experiment_file
    yield "packages", False, partial(_packages, experiment)
    if aws:
        yield "AWS SDK", False, _sdk
        yield "credentials", True, partial(_credentials, experiment)
    for source in experiment.sources:
        yield f"source {source.name}", source.kind == "s3", partial(_source, experiment, source)
    yield "state", experiment.state.startswith("s3://"), partial(_state, experiment)
    yield "runs", False, lambda: _writable(experiment.runs)
    yield from _model_checks(experiment)
    on_aws = experiment.store.kind == "s3vectors" or experiment.state.startswith("s3://")
    yield "index", on_aws, partial(_index, experiment)
    if aws:
        evaluates = ("eval",) if experiment.evaluation else ()
        deploys = ("deploy-models",) if "deployment" in iam.parts(experiment) else ()
        for command in (*deploys, "create-index", "ingest", "query", *evaluates):
            yield f"permissions of {command}", True, partial(_permissions, experiment, command)
    if experiment.tracking is not None:
        yield "tracking", experiment.tracking.uri.startswith("arn:"), partial(_tracking, experiment)


def _model_checks(experiment: Experiment) -> Iterator[tuple[str, bool, Look]]:
    roles: tuple[Role, ...] = ("embedding", "generation", "reranking")
    for role in roles:
        section: Any = getattr(experiment, role)
        kind = section.kind if section is not None else None
        if kind == "sagemaker":
            yield role, True, partial(_endpoint_of, experiment, role)
        elif kind == "bedrock":
            yield role, True, partial(_bedrock, experiment, section.model)
        elif kind == "openai":
            yield role, False, partial(_openai, role, section)
        elif kind == "fastembed" and section.path is not None:
            yield role, False, partial(_folder, f"{role}.path", section.path)


# --- this machine ----------------------------------------------------------------------------------------


def _packages(experiment: Experiment) -> str:
    from ragctl.adapters import BACKENDS
    from ragctl.tracking import require_mlflow

    wanted = {
        BACKENDS[role, section.kind][2]: f"{role}: kind {section.kind}"
        for role in ("store", "embedding", "reranking", "generation")
        if (section := getattr(experiment, role)) is not None
    }
    wanted |= {"eval": "evaluation"} if experiment.evaluation else {}
    wanted |= {"tokens": "chunking.tokenizer"} if experiment.chunking.tokenizer else {}
    if "deployment" in iam.parts(experiment):
        wanted["jumpstart"] = "deploy-models"
    for extra, what in wanted.items():
        if extra is not None and find_spec(PACKAGES[extra]) is None:
            raise MissingExtra(what, extra)
    if experiment.tracking is not None:
        require_mlflow(experiment.tracking)
    return "all that the experiment uses are installed"


def _sdk() -> str:
    found = version("boto3")
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if numbers < SDK_FLOOR:
        floor = ".".join(map(str, SDK_FLOOR))
        raise ConfigError(f"boto3 {found} is too old", hint=f'pip install "boto3>={floor}"')
    return f"boto3 {found}"


def _folder(setting: str, path: Path) -> str:
    if not path.is_dir():
        raise ConfigError(f"{setting}: {path} is no folder")
    return str(path)


def _writable(folder: Path) -> str:
    """The folder, or the nearest one above that is there, may be written into."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise StateError(f"{there} cannot be written")
    return str(folder)


def _source(experiment: Experiment, section: Source) -> str:
    """The source can be listed, and its smallest file of the first ones can be read."""
    from ragctl.sources import open_source

    source = open_source(section, experiment)
    first = list(islice(source.list(), LISTED))
    if not first:
        raise _Unknown("lists no file that ragctl reads")
    source.read(min(first, key=lambda file: file.size))
    return f"{len(first)} files" if len(first) < LISTED else f"{LISTED} files and more"


def _state(experiment: Experiment) -> str:
    """The state location can be read, and written: a write that must lose tells without leaving anything."""
    from ragctl.state import Conflict, LocalState, open_state

    state = open_state(experiment)
    if isinstance(state, LocalState):
        return _writable(state.folder)
    state.read("doctor")
    try:
        state.write("doctor", b"", expect='"00000000000000000000000000000000"')
    except Conflict:
        return state.place
    raise StateError(
        f"{state.place} takes writes whatever their condition, so two runs may overwrite one another"
    )


def _index(experiment: Experiment) -> str:
    from ragctl.state import open_state

    state = open_state(experiment)
    each = [one for named in indexes.named(experiment) for one in tenancy.per_index(named, state)]
    if not each:
        raise NotFound("no tenant has an index yet", hint="ragctl ingest CONFIG")
    for one in each:
        _compare_index(one, state)
    return ", ".join(one.store.index for one in each[:5]) + (" ..." if len(each) > 5 else "")


def _compare_index(experiment: Experiment, state: State) -> None:
    """Raise NotFound when the index is not there, Refused when it differs or its ledger is lost: as ingest would."""
    from ragctl.adapters import open_embedder, open_store
    from ragctl.ingest import reading_ledger
    from ragctl.matching import refuse_lost_ledger

    store = open_store(experiment)
    try:
        info = indexes.require(store, experiment.store.index)
        with reading_ledger(state, info.name) as ledger:
            refuse_lost_ledger(ledger, store, info)
        try:
            spec = indexes.spec_of(experiment, open_embedder(experiment))
        except (ServiceError, ConfigError) as error:
            raise _Unknown(f"{info.name} is there; not compared, for want of the embedder") from error
        indexes.refuse_other_settings(info, spec)
    finally:
        store.close()


def _tracking(experiment: Experiment) -> str:
    from ragctl.tracking import reach

    assert experiment.tracking is not None
    uri = experiment.tracking.uri
    if uri.startswith("sqlite:///"):
        return _writable(Path(uri.removeprefix("sqlite:///")).parent)
    return reach(experiment.tracking)


def _openai(role: str, section: OpenAIEmbedding | OpenAIGeneration) -> str:
    """The server lists its models, ours among them."""
    import urllib3

    where = f"{role}.base_url"
    key = section.api_key.get_secret_value() if section.api_key else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = urllib3.request(
            "GET", f"{section.base_url.rstrip('/')}/models", headers=headers, timeout=TIMEOUT_S, retries=False
        )
    except urllib3.exceptions.HTTPError as error:
        raise ServiceError(f"{where}: nobody answers ({type(error).__name__})") from error
    if reply.status in (401, 403):
        raise CredentialsError(f"{where}: the server refuses the key ({reply.status})")
    if reply.status >= 500:
        raise _Unknown(f"{where}: the server answers {reply.status}")
    try:
        names = [str(model["id"]) for model in reply.json()["data"]]
    except (ValueError, TypeError, KeyError):
        raise _Unknown(f"{where}: the server answers, but lists no models") from None
    if section.model not in names:
        raise _Unknown(f"{where}: the server does not list {section.model}")
    return f"{section.model} is served"


# --- AWS -------------------------------------------------------------------------------------------------


def _credentials(experiment: Experiment) -> str:
    caller = _caller(experiment)
    return f"account {caller['Account']}, {caller['Arn']}"


def _caller(experiment: Experiment) -> dict[str, str]:
    from ragctl.adapters.aws import aws_errors, client

    with aws_errors("sts:GetCallerIdentity", "the caller"):
        found: dict[str, str] = client("sts", experiment).get_caller_identity()
    return found


def _endpoint_of(experiment: Experiment, role: Role) -> str:
    from ragctl.deployment import recorded

    name = getattr(experiment, role).endpoint or recorded(experiment, role).get("endpoint")
    if name is None:
        raise NotFound("no model is deployed", hint="ragctl deploy-models CONFIG")
    return _endpoint(experiment, str(name))


def _endpoint(experiment: Experiment, name: str) -> str:
    from ragctl.adapters.sagemaker_control import ControlPlane
    from ragctl.deployment import Ref

    described = ControlPlane.from_config(experiment).describe(Ref("endpoint", name))
    if described is None:
        raise NotFound(f"there is no endpoint {name}", hint="ragctl deploy-models CONFIG")
    status = str(described["EndpointStatus"])
    if status not in SERVING:
        raise ServiceError(f"endpoint {name} is {status}")
    return f"endpoint {name} is {status}"


def _bedrock(experiment: Experiment, model: str) -> str:
    """The account may use the model in the region."""
    from ragctl.adapters.aws import aws_errors, client

    if ":sagemaker:" in model:
        return _endpoint(experiment, model.rpartition("/")[2])
    if ":application-inference-profile/" in model:
        raise _Unknown("an application inference profile does not say of which models it is")
    plain = iam.GEOGRAPHY.sub("", model.rpartition("/")[2], count=1)
    try:
        with aws_errors("bedrock:GetFoundationModelAvailability", f"model {plain}"):
            found = client("bedrock", experiment).get_foundation_model_availability(modelId=plain)
    except PermissionDenied as error:
        raise _Unknown(f"{error.message} ({error.hint})") from error
    lacks = [
        words
        for words, is_there in (
            ("it is not offered in this region", found["regionAvailability"] == "AVAILABLE"),
            ("the account may not use it", found["entitlementAvailability"] == "AVAILABLE"),
            ("the caller is not authorized", found["authorizationStatus"] == "AUTHORIZED"),
            ("its agreement is not accepted", found["agreementAvailability"]["status"] == "AVAILABLE"),
        )
        if not is_there
    ]
    if lacks:
        raise PermissionDenied(
            f"model {plain}: {', '.join(lacks)}", hint="see model access in the Bedrock console"
        )
    return f"model {plain} may be used"


def _permissions(experiment: Experiment, command: str) -> str:
    """IAM's own simulator says what the caller's policies allow of the rights that the command needs."""
    from ragctl.adapters.aws import aws_errors, client, partition, region

    caller = _caller(experiment)
    where = {"partition": partition(experiment), "region": region(experiment), "account": caller["Account"]}
    denied: list[str] = []
    simulator = client("iam", experiment)
    try:
        principal = _principal(simulator, caller["Arn"])
        with aws_errors("iam:SimulatePrincipalPolicy", principal):
            for right in iam.needed(experiment, command):
                for resource in iam.resources(right, experiment, where):
                    pages = simulator.get_paginator("simulate_principal_policy").paginate(
                        PolicySourceArn=principal, ActionNames=list(right.actions), ResourceArns=[resource]
                    )
                    denied += [
                        f"{result['EvalActionName']} on {resource}"
                        for page in pages
                        for result in page["EvaluationResults"]
                        if result["EvalDecision"] != "allowed"
                    ]
    except PermissionDenied as error:
        raise _Unknown(f"IAM may not be asked ({error.hint}); see docs/iam.md") from error
    if denied:
        raise PermissionDenied(f"not allowed: {', '.join(denied)}")
    return "all that it always needs is allowed"


def _principal(simulator: Any, arn: str) -> str:
    """Whose policies count: the user, or the role behind a session, whose path its session does not tell."""
    from ragctl.adapters.aws import aws_errors

    kind, _, name = arn.split(":", 5)[5].partition("/")
    if kind == "user":
        return arn
    if kind == "assumed-role":
        role = name.partition("/")[0]
        with aws_errors("iam:GetRole", f"role {role}"):
            return str(simulator.get_role(RoleName=role)["Role"]["Arn"])
    raise _Unknown(f"IAM does not simulate what {kind} may do")
