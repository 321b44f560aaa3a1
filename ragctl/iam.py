"""The permissions on AWS that each command needs, in one table: docs/iam.md is made from it, doctor asks by it.

    python -m ragctl.iam > docs/iam.md

Actions and resource types are those of AWS's Service Authorization Reference. A right with a condition (`when`) is
needed only there; one without it is needed whenever its part of the experiment is on AWS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ragctl.config import Experiment

# --- commands --------------------------------------------------------------------------------------------

CREATE, PLAN, INGEST, QUERY, EVAL = "create-index", "plan", "ingest", "query", "eval"
VERIFY, REBUILD, FAILURES = "verify", "ledger rebuild", "failures"
DEPLOY, STATUS, TEARDOWN, DOCTOR = "deploy-models", "status", "teardown", "doctor"
COMMANDS: Final = (
    *(CREATE, PLAN, INGEST, QUERY, EVAL, VERIFY, REBUILD, FAILURES),
    *(DEPLOY, STATUS, TEARDOWN, DOCTOR),
)

_READS_INDEX = (CREATE, PLAN, INGEST, QUERY, EVAL, VERIFY, REBUILD, STATUS, TEARDOWN, DOCTOR)
# A model that does not tell its dimension is asked once.
_EMBEDS = (CREATE, INGEST, QUERY, EVAL, VERIFY, DOCTOR)
_ANSWERS = (QUERY, EVAL)
_WRITES_STATE = (INGEST, REBUILD, TEARDOWN, DOCTOR)
_BY_TENANT = "with tenancy.layout: index"

# --- resources -------------------------------------------------------------------------------------------

VECTOR_BUCKET: Final = "arn:{partition}:s3vectors:{region}:{account}:bucket/{vector_bucket}"
INDEX: Final = f"{VECTOR_BUCKET}/index/{{index}}"
KEY: Final = "{kms_key}"
SOURCE: Final = "arn:{partition}:s3:::{source_bucket}"
SOURCE_FILES: Final = "arn:{partition}:s3:::{source_bucket}/{source_prefix}*"
STATE: Final = "arn:{partition}:s3:::{state_bucket}"
CACHE: Final = "arn:{partition}:s3:::{cache_bucket}"
CACHE_FILES: Final = "arn:{partition}:s3:::{cache_bucket}/{cache_prefix}*"
STATE_FILES: Final = "arn:{partition}:s3:::{state_bucket}/{state_prefix}*"
ENDPOINTS: Final = {
    role: f"arn:{{partition}}:sagemaker:{{region}}:{{account}}:endpoint/{{{role}_endpoint}}"
    for role in ("embedding", "generation", "reranking")
}
MODELS: Final = {role: f"{{{role}_model}}" for role in ("embedding", "generation", "reranking")}
GUARDRAIL: Final = "arn:{partition}:bedrock:{region}:{account}:guardrail/{guardrail}"
DEPLOYED: Final = tuple(
    f"arn:{{partition}}:sagemaker:{{region}}:{{account}}:{kind}/ragctl-*"
    for kind in ("model", "endpoint-config", "endpoint", "inference-component")
)
ALARMS: Final = "arn:{partition}:cloudwatch:{region}:{account}:alarm:ragctl-*"
ANY: Final = "*"
# Of an inference profile's id
GEOGRAPHY: Final = re.compile(r"(us|us-gov|eu|uk|ap|apac|jp|au|ca|sa|global)\.")


@dataclass(frozen=True, slots=True)
class Right:
    """Actions on resources that some commands need for a part of an experiment. `when`: the condition, for people."""

    part: str  # "<section>: <kind>", as `parts` gives them
    commands: tuple[str, ...]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    when: str = ""


def _right(
    part: str, commands: tuple[str, ...], actions: str, *resources: str, service: str = "", when: str = ""
) -> Right:
    """`actions` stand with spaces between; `service` goes before each that names none."""
    named = tuple(action if ":" in action else f"{service}:{action}" for action in actions.split())
    return Right(part, commands, named, resources, when)


def _s3vectors() -> Iterator[Right]:
    part, service = "store: s3vectors", "s3vectors"
    make = (CREATE, INGEST)
    yield _right(part, _READS_INDEX, "GetIndex ListTagsForResource", INDEX, service=service)
    yield _right(part, (INGEST,), "PutVectors GetVectors DeleteVectors", INDEX, service=service)
    yield _right(
        part, (PLAN, INGEST), "ListVectors", INDEX, service=service, when="where the index has lost vectors"
    )
    yield _right(
        part,
        (STATUS, DOCTOR),
        "ListVectors",
        INDEX,
        service=service,
        when="where the index has no ledger, to tell whether that is lost",
    )
    yield _right(
        part, (PLAN,), "GetVectors", INDEX, service=service, when="where documents are in the index already"
    )
    yield _right(
        part,
        (STATUS,),
        "ListVectorBuckets ListIndexes ListTagsForResource",
        ANY,
        service=service,
        when="without a config, for the whole account",
    )
    # A filter, metadata or words in a query ask for GetVectors as well, as does metadata in a list.
    yield _right(part, _ANSWERS, "QueryVectors GetVectors", INDEX, service=service)
    yield _right(part, (VERIFY, REBUILD), "ListVectors GetVectors", INDEX, service=service)
    yield _right(part, (VERIFY,), "PutVectors DeleteVectors", INDEX, service=service, when="with --repair")
    for command, when in (
        (CREATE, ""),
        (INGEST, "where there is no index yet"),
        (VERIFY, "with --repair, where the index is gone"),
    ):
        yield _right(part, (command,), "CreateIndex TagResource", INDEX, service=service, when=when)
        yield _right(part, (command,), "GetVectorBucket", VECTOR_BUCKET, service=service, when=when)
    yield _right(
        part,
        make,
        "CreateVectorBucket TagResource",
        VECTOR_BUCKET,
        service=service,
        when="where there is no vector bucket yet",
    )
    upgrade = "with --upgrade"
    yield _right(
        part, (CREATE,), "PutVectorBucketDefaultIndexMode", VECTOR_BUCKET, service=service, when=upgrade
    )
    yield _right(
        part, (CREATE,), "UpdateIndexMode UpdateMetadataConfiguration", INDEX, service=service, when=upgrade
    )
    yield _right(part, (TEARDOWN,), "DeleteIndex", INDEX, service=service)
    yield _right(
        part,
        (TEARDOWN,),
        "GetVectorBucket ListIndexes ListTagsForResource DeleteVectorBucket",
        VECTOR_BUCKET,
        service=service,
        when="with --bucket or --all",
    )
    yield _right("store: kms", (CREATE,), "GenerateDataKey", KEY, service="kms")
    yield _right("store: kms", (INGEST, QUERY, EVAL, VERIFY, REBUILD), "Decrypt", KEY, service="kms")


def _s3() -> Iterator[Right]:
    listing = (PLAN, INGEST, VERIFY, REBUILD, DOCTOR)
    yield _right("source: s3", listing, "ListBucket", SOURCE, service="s3")
    yield _right("source: s3", (CREATE, FAILURES), "ListBucket", SOURCE, service="s3", when=_BY_TENANT)
    yield _right("source: s3", (PLAN, INGEST, VERIFY, DOCTOR), "GetObject", SOURCE_FILES, service="s3")
    # Without ListBucket a file that is not there yet looks like one that may not be read.
    reads = (*_WRITES_STATE, PLAN, VERIFY, FAILURES, EVAL, DEPLOY, STATUS)
    yield _right("state: s3", reads, "GetObject", STATE_FILES, service="s3")
    yield _right("state: s3", reads, "ListBucket", STATE, service="s3")
    yield _right("state: s3", (*_WRITES_STATE, DEPLOY), "PutObject", STATE_FILES, service="s3")
    yield _right("state: s3", (INGEST, REBUILD, TEARDOWN), "DeleteObject", STATE_FILES, service="s3")
    yield _right(
        "state: s3", (VERIFY,), "PutObject DeleteObject", STATE_FILES, service="s3", when="with --repair"
    )
    when = f"{_BY_TENANT}, or models that deploy-models made"
    yield _right("state: s3", (CREATE, QUERY), "GetObject", STATE_FILES, service="s3", when=when)
    yield _right("state: s3", (CREATE, QUERY), "ListBucket", STATE, service="s3", when=when)
    yield _right("state: s3", (CREATE,), "PutObject", STATE_FILES, service="s3", when=_BY_TENANT)
    yield _right("cache: s3", (PLAN, INGEST), "GetObject", CACHE_FILES, service="s3")
    yield _right("cache: s3", (INGEST,), "PutObject", CACHE_FILES, service="s3")
    yield _right("cache: s3", (PLAN, INGEST), "ListBucket", CACHE, service="s3")
    yield _right("cache: s3", (TEARDOWN,), "ListBucket", CACHE, service="s3", when="with --state or --all")
    yield _right("cache: s3", (TEARDOWN,), "DeleteObject", CACHE_FILES, service="s3", when="with --state")


def _models() -> Iterator[Right]:
    yield _right(
        "embedding: sagemaker", _EMBEDS, "InvokeEndpoint", ENDPOINTS["embedding"], service="sagemaker"
    )
    yield _right(
        "embedding: sagemaker",
        (PLAN,),
        "InvokeEndpoint",
        ENDPOINTS["embedding"],
        service="sagemaker",
        when="where neither index nor config says the dimension",
    )
    yield _right(
        "generation: sagemaker", _ANSWERS, "InvokeEndpoint", ENDPOINTS["generation"], service="sagemaker"
    )
    yield _right(
        "generation: sagemaker",
        (QUERY,),
        "InvokeEndpointWithResponseStream",
        ENDPOINTS["generation"],
        service="sagemaker",
    )
    yield _right(
        "reranking: sagemaker", _ANSWERS, "InvokeEndpoint", ENDPOINTS["reranking"], service="sagemaker"
    )
    yield _right("embedding: bedrock", _EMBEDS, "InvokeModel", MODELS["embedding"], service="bedrock")
    yield _right("generation: bedrock", _ANSWERS, "InvokeModel", MODELS["generation"], service="bedrock")
    yield _right(
        "generation: bedrock",
        (QUERY,),
        "InvokeModelWithResponseStream",
        MODELS["generation"],
        service="bedrock",
    )
    yield _right("generation: guardrail", _ANSWERS, "ApplyGuardrail", GUARDRAIL, service="bedrock")
    yield _right("reranking: bedrock", _ANSWERS, "Rerank", ANY, service="bedrock")
    yield _right("reranking: bedrock", _ANSWERS, "InvokeModel", MODELS["reranking"], service="bedrock")
    yield _right(
        "tracking: sagemaker",
        (EVAL,),
        "GetExperimentByName CreateExperiment CreateRun GetRun UpdateRun LogBatch",
        "{tracking}",
        service="sagemaker-mlflow",
    )
    yield _right("tracking: sagemaker", (EVAL,), "PutObject", "{tracking_artifacts}", service="s3")


def _deployment() -> Iterator[Right]:
    part, service = "deployment", "sagemaker"
    both = (DEPLOY, TEARDOWN)
    looks = (PLAN, STATUS, *both)
    finds = (STATUS, *both)
    kinds = ("Model", "EndpointConfig", "Endpoint", "InferenceComponent")
    for kind, resource in zip(kinds, DEPLOYED, strict=True):
        yield _right(part, (DEPLOY,), f"Create{kind}", resource, service=service)
        yield _right(part, looks, f"Describe{kind}", resource, service=service)
        # deploy-models takes back what it made when something fails.
        yield _right(part, both, f"Delete{kind}", resource, service=service)
    yield _right(part, looks, "ListTags", *DEPLOYED, service=service)
    yield _right(part, (DEPLOY,), "AddTags DeleteTags", *DEPLOYED, service=service)
    yield _right(part, (DEPLOY,), "UpdateEndpoint", *DEPLOYED[1:3], service=service, when="with --replace")
    yield _right(part, finds, " ".join(f"List{kind}s" for kind in kinds), ANY, service=service)
    kept = "tells what endpoints of others use, for --expired and --orphans: else configs and models stay"
    of_others = "DescribeEndpoint DescribeEndpointConfig DescribeInferenceComponent"
    yield _right(part, (STATUS, TEARDOWN), of_others, ANY, service=service, when=kept)
    orphans = "finds what no record names; teardown --orphans, and status without a config, need it"
    yield _right(part, finds, "tag:GetResources", ANY, when=orphans)
    yield _right(
        part, (STATUS,), "cloudwatch:GetMetricStatistics", ANY, when="tells when an endpoint was used"
    )
    yield _right(part, (DEPLOY,), "iam:PassRole", "{role}")
    yield _right(part, (PLAN, DEPLOY), "s3:GetObject", "arn:{partition}:s3:::jumpstart-cache-prod-{region}/*")
    yield _right(part, (PLAN, DEPLOY), "pricing:GetProducts", ANY, when="tells what it costs")
    yield _right(
        part, (PLAN, DEPLOY), "servicequotas:ListServiceQuotas", ANY, when="tells a quota before it is met"
    )
    yield _right(part, (PLAN, DEPLOY), "sagemaker:DescribeHubContent", ANY, when="with deployment.hub")
    scaling = "with autoscaling"
    yield _right(
        part,
        (DEPLOY,),
        "RegisterScalableTarget PutScalingPolicy TagResource",
        ANY,
        service="application-autoscaling",
        when=scaling,
    )
    scaler = "application-autoscaling"
    yield _right(part, finds, "DescribeScalableTargets", ANY, service=scaler, when=scaling)
    yield _right(part, both, "DeregisterScalableTarget", ANY, service=scaler, when=scaling)
    yield _right(part, (DEPLOY,), "PutMetricAlarm TagResource", ALARMS, service="cloudwatch", when=scaling)
    yield _right(part, finds, "DescribeAlarms", ALARMS, service="cloudwatch", when=scaling)
    yield _right(part, both, "DeleteAlarms", ALARMS, service="cloudwatch", when=scaling)
    yield _right(
        part,
        (DEPLOY,),
        "iam:CreateServiceLinkedRole",
        "arn:{partition}:iam::{account}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*",
        when=f"{scaling}, the first time in an account",
    )


def _doctor() -> Iterator[Right]:
    for role, endpoint in ENDPOINTS.items():
        yield _right(f"{role}: sagemaker", (DOCTOR,), "DescribeEndpoint", endpoint, service="sagemaker")
    for role in MODELS:
        yield _right(
            f"{role}: bedrock",
            (DOCTOR,),
            "GetFoundationModelAvailability",
            ANY,
            service="bedrock",
            when="else model access stays unknown",
        )
    yield _right(
        "any",
        (DOCTOR,),
        "SimulatePrincipalPolicy GetRole",
        "{caller}",
        service="iam",
        when="else permissions stay unknown",
    )
    yield _right("any", (DOCTOR,), "sts:GetCallerIdentity", ANY, when="AWS grants it to everybody")


RIGHTS: Final = (*_s3vectors(), *_s3(), *_models(), *_deployment(), *_doctor())

# --- for one experiment ----------------------------------------------------------------------------------


def parts(experiment: Experiment) -> set[str]:
    """The parts of an experiment that are on AWS."""
    named = {
        f"{section}: {getattr(experiment, section).kind}"
        for section in ("store", "embedding", "generation", "reranking")
        if getattr(experiment, section) is not None
    }
    named |= {f"source: {source.kind}" for source in experiment.sources}
    if experiment.store.kind == "s3vectors" and experiment.store.kms_key_arn:
        named.add("store: kms")
    if experiment.generation.kind == "bedrock" and experiment.generation.guardrail:
        named.add("generation: guardrail")
    if experiment.state.startswith("s3://"):
        named.add("state: s3")
    if experiment.cache is not None and experiment.cache.path.startswith("s3://"):
        named.add("cache: s3")
    if experiment.tracking is not None and experiment.tracking.uri.startswith("arn:"):
        named.add("tracking: sagemaker")
    sections = (experiment.embedding, experiment.generation, experiment.reranking)
    if any(section is not None and section.kind == "sagemaker" and section.model for section in sections):
        named.add("deployment")
    return named & {right.part for right in RIGHTS}


def needed(experiment: Experiment, command: str) -> list[Right]:
    """The rights that a command needs for an experiment whatever happens, so without those that have a condition."""
    used = parts(experiment)
    return [right for right in RIGHTS if right.part in used and command in right.commands and not right.when]


def resources(right: Right, experiment: Experiment, where: Mapping[str, str]) -> list[str]:
    """The ARNs that a right is about in this experiment, a name made up where it is about all names below a prefix.

    `where` gives partition, region and account. What the experiment does not name is left out.
    """
    found: dict[str, None] = {}
    for names in _names(experiment, where):
        for resource in right.resources:
            try:
                arn = resource.format_map(names)
            except KeyError:
                continue
            found[arn if arn == ANY else arn.replace("*", "ragctl-doctor")] = None
    return list(found)


def _names(experiment: Experiment, where: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What stands for the placeholders: once for each source in a bucket, and once where there is none."""
    names = {**where, **_store_names(experiment), **_model_names(experiment, where)}
    cache = experiment.cache.path if experiment.cache else ""
    for name, place in (("state", experiment.state), ("cache", cache)):
        if place.startswith("s3://"):
            bucket, _, prefix = place.removeprefix("s3://").partition("/")
            names |= {f"{name}_bucket": bucket, f"{name}_prefix": f"{prefix.strip('/')}/".lstrip("/")}
    if experiment.tracking is not None:
        names["tracking"] = experiment.tracking.uri
    buckets = [source for source in experiment.sources if source.kind == "s3"]
    for source in buckets:
        yield {**names, "source_bucket": source.bucket, "source_prefix": source.prefix}
    if not buckets:
        yield names


def _store_names(experiment: Experiment) -> dict[str, str]:
    store = experiment.store
    if store.kind != "s3vectors":
        return {}
    each = experiment.tenancy is not None and experiment.tenancy.layout == "index"
    index = store.index + ("-*" if experiment.indexes else "") + (".*" if each else "")
    names = {"vector_bucket": store.bucket, "index": index}
    return names | ({"kms_key": store.kms_key_arn} if store.kms_key_arn else {})


def _model_names(experiment: Experiment, where: Mapping[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for role in MODELS:
        section = getattr(experiment, role)
        kind = section.kind if section is not None else None
        if kind == "bedrock":
            names[f"{role}_model"] = model_arn(section.model, where)
        elif kind == "sagemaker" and section.endpoint:
            names[f"{role}_endpoint"] = section.endpoint
    if experiment.deployment.role_arn:
        names["role"] = experiment.deployment.role_arn
    generation = experiment.generation
    if generation.kind == "bedrock" and generation.guardrail:
        names["guardrail"] = generation.guardrail.rpartition("/")[2]
    return names


def model_arn(model: str, where: Mapping[str, str]) -> str:
    """The ARN of a Bedrock model or inference profile; one that is given stays as it is."""
    if model.startswith("arn:"):
        return model
    begin = f"arn:{where['partition']}:bedrock:{where['region']}"
    if GEOGRAPHY.match(model):
        return f"{begin}:{where['account']}:inference-profile/{model}"
    return f"{begin}::foundation-model/{model}"


# --- the page --------------------------------------------------------------------------------------------

_PLACEHOLDERS: Final[Mapping[str, str]] = {
    "partition": "aws",
    "kms_key": "arn:aws:kms:REGION:ACCOUNT:key/KEY",
    "tracking": "arn:aws:sagemaker:REGION:ACCOUNT:mlflow-tracking-server/SERVER",
    "tracking_artifacts": "arn:aws:s3:::ARTIFACT-BUCKET/ARTIFACT-PREFIX/*",
    "role": "arn:aws:iam::ACCOUNT:role/EXECUTION-ROLE",
    "caller": "arn:aws:iam::ACCOUNT:role/CALLER",
    **{f"{role}_model": f"arn:aws:bedrock:REGION::foundation-model/{role.upper()}-MODEL" for role in MODELS},
}

_INTRODUCTION: Final = """\
# Permissions on AWS

The least that each command needs, by the parts of the experiment that are on AWS. Take the statements of the parts
that yours has, and put your own names in for the words in capitals. `ragctl doctor CONFIG` tells what is missing.

- Outside of the partition `aws`, ARNs begin with `arn:aws-cn:` or `arn:aws-us-gov:`.
- With several `indexes` the index is `INDEX-*`. With `tenancy.layout: index` it is `INDEX.*`; a role for one tenant
  names that tenant's index alone. Rights end at the index: with `layout: filter`, whoever may query the index directly
  may read every tenant's documents.
- An inference profile of Bedrock needs its own ARN and those of the models that it may send to, in each region.
- `s3:*` says nothing about vectors: S3 Vectors has actions of its own. For an index with a KMS key,
  `indexing.s3vectors.amazonaws.com` needs `kms:Decrypt` in the policy of the key.
- `aws.role_arn` needs `sts:AssumeRole` on that role, and the rights below belong to it then.

This page is made from the table in `ragctl/iam.py`.
"""


def page() -> str:
    """docs/iam.md."""
    return "\n".join([_INTRODUCTION, *map(_chapter, COMMANDS)])


def _chapter(command: str) -> str:
    rights = [right for right in RIGHTS if command in right.commands]
    rows = [
        f"| {right.part} | {_listed(right.actions)} | {_listed(_filled(right))} | {right.when or 'always'} |"
        for right in rights
    ]
    table = ["| Part | Actions | Resource | Needed |", "|---|---|---|---|", *rows]
    return "\n".join(
        [f"## ragctl {command}\n", *table, "", *_policy(right for right in rights if not right.when)]
    )


def _policy(rights: Iterable[Right]) -> Iterator[str]:
    """What is always needed as a policy, a statement for each part and resource."""
    merged: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for right in rights:
        merged.setdefault((right.part, tuple(_filled(right))), {}).update(dict.fromkeys(right.actions))
    if not merged:
        return
    statements = [
        {
            "Sid": f"{_sid(part)}{number}",
            "Effect": "Allow",
            "Action": list(actions),
            "Resource": list(resources),
        }
        for number, ((part, resources), actions) in enumerate(merged.items(), 1)
    ]
    lines = ",\n".join(f"  {json.dumps(statement)}" for statement in statements)
    yield from ("```json", f'{{"Version": "2012-10-17", "Statement": [\n{lines}\n]}}', "```", "")


def _sid(part: str) -> str:
    return "".join(character for character in part.title() if character.isalnum())


def _listed(items: Iterable[str]) -> str:
    return "<br>".join(f"`{item}`" for item in items)


def _filled(right: Right) -> list[str]:
    return [resource.format_map(_Names()) for resource in right.resources]


class _Names(dict[str, str]):
    """What stands for a name on the page: the name itself in capitals, unless it is given otherwise."""

    def __missing__(self, name: str) -> str:
        return _PLACEHOLDERS.get(name, name.upper().replace("_", "-"))


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201  the page is the result
