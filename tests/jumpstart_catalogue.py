"""A JumpStart catalogue of our own, written in Python: a bucket's manifest and specs, as small as the SDK takes them.

The shapes are those of the public catalogue; the models, images and keys are invented, except for the names of the
two models that AWS's walk-through deploys.
"""

import json
from collections.abc import Iterator
from typing import Any

REGION = "eu-west-1"
BUCKET = f"jumpstart-cache-prod-{REGION}"
GATED_BUCKET = f"jumpstart-private-cache-prod-{REGION}"
REGISTRY = f"763104351884.dkr.ecr.{REGION}.amazonaws.com"

EMBEDDER = "huggingface-textembedding-gte-qwen2-7b-instruct"
WRITER = "deepseek-llm-r1-distill-qwen-7b"
GATED = "meta-textgeneration-fable-8b"
RETIRED = "huggingface-llm-moth-1b"
OLD = "huggingface-textembedding-pebble"
SCRIPTED = "pytorch-textembedding-scripted"
DRAFTED = "example-llm-with-a-draft"
SOLD = "example-market-writer"

FLAGS = (
    "incremental_training_supported",
    "training_supported",
    "deprecated",
    "inference_vulnerable",
    "training_vulnerable",
    "validation_supported",
    "fine_tuning_supported",
    "hosting_use_script_uri",
)
LISTS = (
    "inference_dependencies",
    "inference_vulnerabilities",
    "training_dependencies",
    "training_vulnerabilities",
    "metrics",
)


def variable(name: str, default: str | int) -> dict[str, Any]:
    """A variable of the container's environment."""
    kind = "int" if isinstance(default, int) else "text"
    return {
        "name": name,
        "type": kind,
        "default": default,
        "scope": "container",
        "required_for_model_class": True,
    }


def images(image: str, *families: str, **by_type: dict[str, Any]) -> dict[str, Any]:
    """One image for these families of instances; `by_type` are further properties of single types."""
    rows: dict[str, Any] = {f: {"regional_properties": {"image_uri": "$image"}} for f in families}
    rows |= {name.replace("_", "."): {"properties": properties} for name, properties in by_type.items()}
    return {"regional_aliases": {REGION: {"image": f"{REGISTRY}/{image}"}}, "variants": rows}


def payload(body: Any, content_type: str = "application/json") -> dict[str, Any]:
    """An example request."""
    return {"Example": {"content_type": content_type, "body": body}}


def spec(model_id: str, version: str, types: list[str], **members: Any) -> dict[str, Any]:
    """A model's spec with these members over what all have."""
    return {
        **dict.fromkeys(FLAGS, False),
        **{name: [] for name in LISTS},
        "model_kwargs": {},
        "deploy_kwargs": {},
        "inference_enable_network_isolation": True,
        "dynamic_container_deployment_supported": True,
        "model_id": model_id,
        "version": version,
        "min_sdk_version": "2.225.0",
        "url": f"https://models.example/{model_id}",
        "provider": "example",
        "hosting_ecr_specs": {
            "framework": "huggingface-llm",
            "framework_version": "1.0",
            "py_version": "py310",
        },
        "hosting_artifact_key": f"{model_id}/raw/",
        "hosting_prepacked_artifact_key": f"{model_id}/packed/v{version}/",
        "inference_environment_variables": [variable("HF_MODEL_ID", "/opt/ml/model")],
        "default_inference_instance_type": types[0],
        "supported_inference_instance_types": types,
        **members,
    }


def specs() -> Iterator[dict[str, Any]]:
    """The specs of the open models."""
    timeouts = {"model_data_download_timeout": 1200, "container_startup_health_check_timeout": 900}
    for version, sdk in (("1.0.7", "2.225.0"), ("1.0.8", "2.225.0"), ("9.0.0", "9.9.9")):
        yield spec(
            EMBEDDER,
            version,
            ["ml.g5.2xlarge", "ml.g5.12xlarge", "ml.g4dn.12xlarge"],
            min_sdk_version=sdk,
            inference_environment_variables=[
                variable("HF_MODEL_ID", "/opt/ml/model"),
                variable("MAX_BATCH_TOKENS", 16384),
            ],
            deploy_kwargs=timeouts,
            inference_volume_size=256,
            hosting_resource_requirements={"min_memory_mb": 16384, "num_accelerators": 1},
            default_payloads=payload({"inputs": ["how far is the lighthouse"]}),
            hosting_instance_type_variants=images(
                "tei:2.0.1-gpu",
                "g5",
                "g4dn",
                ml_g5_12xlarge={"environment_variables": {"MAX_BATCH_TOKENS": "65536"}},
            ),
        )
    lmi = {
        "component_name": "lmi",
        "default_inference_instance_type": "ml.g6.12xlarge",
        "supported_inference_instance_types": ["ml.g5.2xlarge", "ml.g6.12xlarge"],
        "default_payloads": payload({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}),
        "hosting_instance_type_variants": images(
            "djl-inference:0.31.0-lmi",
            "g5",
            "g6",
            ml_g6_12xlarge={"environment_variables": {"OPTION_TENSOR_PARALLEL_DEGREE": "4"}},
            ml_g5_2xlarge={"environment_variables": {"OPTION_TENSOR_PARALLEL_DEGREE": "1"}},
        ),
    }
    yield spec(
        WRITER,
        "2.0.2",
        ["ml.g6.12xlarge", "ml.g5.2xlarge"],
        deploy_kwargs=timeouts,
        inference_configs={"lmi": {"component_names": ["lmi"]}},
        inference_config_rankings={"overall": {"description": "default", "rankings": ["lmi"]}},
        inference_config_components={"lmi": lmi},
    )
    yield spec(
        GATED,
        "1.1.0",
        ["ml.g5.4xlarge"],
        gated_bucket=True,
        hosting_eula_key="eula/fable.txt",
        default_payloads=payload({"inputs": "Once upon", "parameters": {"max_new_tokens": 8}}),
        hosting_instance_type_variants=images("djl-inference:0.29.0-lmi", "g5"),
    )
    yield spec(
        RETIRED,
        "1.0.0",
        ["ml.g5.xlarge"],
        deprecated=True,
        deprecated_message="retired in spring",
        hosting_instance_type_variants=images("djl-inference:0.20.0", "g5"),
    )
    yield spec(
        OLD,
        "1.1.2",
        ["ml.g5.xlarge", "ml.m5.xlarge"],
        hosting_prepacked_artifact_key="packed/pebble.tar.gz",
        default_payloads=payload("a short sentence", "application/x-text"),
        hosting_instance_type_variants=images("huggingface-pytorch-inference:1.10.2", "g5", "m5"),
    )
    scripted = spec(
        SCRIPTED,
        "1.0.0",
        ["ml.g5.xlarge"],
        hosting_use_script_uri=True,
        hosting_script_key="scripts/sourcedir.tar.gz",
        hosting_instance_type_variants=images("pytorch-inference:1.10", "g5"),
    )
    del scripted["hosting_prepacked_artifact_key"]
    yield scripted
    plain = {**lmi, "component_name": "plain"}
    drafted = {
        **lmi,
        "component_name": "fast",
        "hosting_additional_data_sources": {
            "speculative_decoding": [
                {
                    "channel_name": "draft_model",
                    "artifact_version": "v1",
                    "provider": {"name": "JumpStart", "classification": "gated"},
                    "s3_data_source": {
                        "compression_type": "None",
                        "s3_data_type": "S3Prefix",
                        "s3_uri": "draft/v1/",
                    },
                }
            ]
        },
    }
    yield spec(
        DRAFTED,
        "1.0.0",
        ["ml.g6.12xlarge"],
        inference_configs={"fast": {"component_names": ["fast"]}, "plain": {"component_names": ["plain"]}},
        inference_config_rankings={"overall": {"description": "default", "rankings": ["fast", "plain"]}},
        inference_config_components={"fast": drafted, "plain": plain},
    )


def hub_document() -> dict[str, Any]:
    """A model as a private hub describes it: other names, and everything of this region."""
    return {
        "Url": "https://models.example/house-embedder",
        "MinSdkVersion": "2.225.0",
        "TrainingSupported": False,
        "HostingEcrUri": f"{REGISTRY}/tei:2.0.1-gpu",
        "HostingArtifactUri": "s3://house/embedder/",
        "HostingUseScriptUri": False,
        "HostingPrepackedArtifactUri": "s3://house/embedder/",
        "InferenceDependencies": [],
        "InferenceEnvironmentVariables": [
            {
                "Name": "HF_MODEL_ID",
                "Type": "text",
                "Default": "/opt/ml/model",
                "Scope": "container",
                "RequiredForModelClass": True,
            }
        ],
        "DefaultInferenceInstanceType": "ml.g5.2xlarge",
        "SupportedInferenceInstanceTypes": ["ml.g5.2xlarge"],
        "InferenceEnableNetworkIsolation": True,
        "ResourceNameBase": "house-embedder",
        "DefaultPayloads": {"Example": {"ContentType": "application/json", "Body": {"inputs": ["a"]}}},
        "HostingInstanceTypeVariants": {
            "Variants": {"g5": {"Properties": {"ImageUri": f"{REGISTRY}/tei:2.0.1-gpu"}}}
        },
    }


def objects() -> Iterator[tuple[str, bytes]]:
    """Every object of the public bucket: manifests and specs."""
    headers = []
    for document in specs():
        key = f"community_models/{document['model_id']}/specs_v{document['version']}.json"
        headers.append(
            {
                "model_id": document["model_id"],
                "version": document["version"],
                "min_version": document["min_sdk_version"],
                "spec_key": key,
                "deprecated": document["deprecated"],
                "provider": "example",
                "search_keywords": [],
            }
        )
        yield key, json.dumps(document).encode()
    sold = {
        "model_id": SOLD,
        "version": "1.0",
        "min_version": "2.0.0",
        "spec_key": "x.json",
        "search_keywords": [],
    }
    yield "models_manifest.json", json.dumps(headers).encode()
    yield "proprietary-sdk-manifest.json", json.dumps([sold]).encode()
