"""What a JumpStart model needs, asked of the SageMaker SDK (extra: jumpstart). Nothing is created here.

The retrieval functions of `sagemaker.core` read the public catalogue; they need the package sagemaker-core alone, and
send no telemetry. The SDK's own way of deploying is not used: it lets a model's variables win over the user's, and
loses tags and errors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ragctl.adapters.aws import aws_errors, client, partition, region, session
from ragctl.blueprint import Resolved, Role, payload_family
from ragctl.errors import ConfigError, MissingExtra, Refused

if TYPE_CHECKING:
    from ragctl.config import Experiment

os.environ.setdefault("DISABLE_JUMPSTART_LOGGING", "1")  # read once, when the SDK is imported
logging.getLogger("sagemaker").setLevel(logging.ERROR)

try:
    from packaging.version import Version
    from sagemaker.core import environment_variables, image_uris, model_uris
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.jumpstart import artifacts, utils
    from sagemaker.core.jumpstart.accessors import JumpStartModelsAccessor
    from sagemaker.core.jumpstart.enums import JumpStartModelType
    from sagemaker.core.jumpstart.exceptions import (
        DeprecatedJumpStartModelError,
        VulnerableJumpStartModelError,
    )
    from sagemaker.core.jumpstart.hub.utils import construct_hub_model_reference_arn_from_inputs
    from sagemaker.core.jumpstart.types import HubContentType
except ModuleNotFoundError as error:
    raise MissingExtra("deploy-models", "jumpstart") from error


class Catalogue:
    """JumpStart's models in the experiment's region."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._region = region(experiment)
        self._session = Session(
            boto_session=session(experiment), sagemaker_client=client("sagemaker", experiment)
        )
        self._session.s3_client = client("s3", experiment)  # with the endpoints of the aws section
        self._hub = self._hub_arn(experiment.deployment.hub)

    def resolve(self, role: Role, model_id: str, version: str) -> Resolved:
        """What the model needs, at an exact version or the highest that a glob such as "1.*" allows.

        Raises ConfigError for a model, version or instance type that JumpStart does not offer, Refused for a
        deprecated or vulnerable model, ServiceError when the catalogue cannot be read.
        """
        # The SDK changes the entries of its cache when it resolves an instance type's variables, so that a second
        # type in one process would get the first one's: every model starts with an empty cache.
        JumpStartModelsAccessor.reset_cache(
            cache_kwargs={"s3_client": self._session.s3_client}, region=self._region
        )
        with (
            aws_errors("s3:GetObject", f"the JumpStart catalogue of {self._region}"),
            self._refusals(role, model_id),
        ):
            if self._hub is None:
                self._check_offered(role, model_id, version)
            specs = self._specs(model_id, version)
            config = self._config(role, model_id, specs)
            return self._resolved(role, self._specs(model_id, specs.version, config), config)

    def _specs(self, model_id: str, version: str, config: str | None = None) -> Any:
        return utils.verify_model_region_and_return_specs(
            model_id,
            version,
            "inference",
            self._region,
            hub_arn=self._hub,
            sagemaker_session=self._session,
            config_name=config,
        )

    def _config(self, role: Role, model_id: str, specs: Any) -> str | None:
        """The model's configuration: the one that is asked for, else the SDK's first."""
        asked: str | None = getattr(self._experiment.deployment, role).inference_config
        offered = sorted(specs.inference_configs.configs) if specs.inference_configs else []
        if asked is not None and asked not in offered:
            raise ConfigError(
                f"deployment.{role}.inference_config: {model_id} has no configuration {asked}",
                hint=f"it has {', '.join(offered) or 'none to choose from'}",
            )
        return asked or utils.get_top_ranked_config_name(
            region=self._region,
            model_id=model_id,
            model_version=specs.version,
            sagemaker_session=self._session,
            hub_arn=self._hub,
        )

    def _resolved(self, role: Role, specs: Any, config: str | None) -> Resolved:
        self._check_deployable(role, specs, config)
        settings = getattr(self._experiment.deployment, role)
        instance_type = settings.instance_type or specs.default_inference_instance_type
        supported = specs.supported_inference_instance_types or []
        if instance_type not in supported:
            raise ConfigError(
                f"deployment.{role}.instance_type: {specs.model_id} does not run on {instance_type}",
                hint=f"it runs on {', '.join(supported)}",
            )
        common: dict[str, Any] = {
            "region": self._region,
            "sagemaker_session": self._session,
            "config_name": config,
            "hub_arn": self._hub,
            "instance_type": instance_type,
        }
        model: dict[str, str] = {"model_id": specs.model_id, "model_version": specs.version}
        image = image_uris.retrieve(framework=None, image_scope="inference", **model, **common)
        kwargs = artifacts._retrieve_model_deploy_kwargs(**model, **common)  # noqa: SLF001 - no public one has the timeouts
        resources = artifacts._retrieve_default_resources(scope="inference", **model, **common)  # noqa: SLF001 - as above
        needs = resources.requests if resources else {}  # a hub's document may leave them out
        return Resolved(
            model_id=specs.model_id,
            version=specs.version,
            image=image,
            artefact=model_uris.retrieve(model_scope="inference", **model, **common),
            instance_type=instance_type,
            family=payload_family(role, _bodies(specs), image),
            env=environment_variables.retrieve_default(script="inference", **model, **common),
            network_isolation=bool(specs.inference_enable_network_isolation),
            download_timeout=kwargs.get("model_data_download_timeout"),
            startup_timeout=kwargs.get("container_startup_health_check_timeout"),
            volume_gb=kwargs.get("volume_size"),
            ami=kwargs.get("inference_ami_version"),
            eula=self._eula(specs),
            accelerators=needs.get("num_accelerators"),
            memory_mb=needs.get("memory"),
            hub_content=self._hub_content(specs),
        )

    def _hub_content(self, specs: Any) -> str | None:
        """The ARN that gives access to the weights of a public model which a private hub refers to."""
        if self._hub is None or specs.hub_content_type != HubContentType.MODEL_REFERENCE:
            return None
        return str(construct_hub_model_reference_arn_from_inputs(self._hub, specs.model_id, specs.version))

    def _eula(self, specs: Any) -> str | None:
        if specs.hosting_eula_key is None:
            return str(specs.url) if specs.gated_bucket else None
        bucket = utils.get_jumpstart_content_bucket(region=self._region)
        domain = utils.get_domain_for_region(self._region)
        return f"https://{bucket}.s3.{self._region}.{domain}/{specs.hosting_eula_key}"

    # --- refusals ---

    def _check_offered(self, role: Role, model_id: str, version: str) -> None:
        """Raise ConfigError, in our words, for what the SDK would answer with a KeyError."""
        headers = self._headers(JumpStartModelType.OPEN_WEIGHTS)
        offered = [header for header in headers if header.model_id == model_id]
        if not offered:
            self._refuse_unknown(role, model_id, sorted({header.model_id for header in headers}))
        sdk = Version(utils.get_sagemaker_version())
        fitting = [header for header in offered if fnmatchcase(str(header.version), version)]
        if not fitting:
            versions = [
                f"{header.version}{'' if Version(header.min_version) <= sdk else ' (for a newer sagemaker-core)'}"
                for header in sorted(offered, key=lambda header: Version(str(header.version)))
            ]
            raise ConfigError(
                f"{role}.model_version: {model_id} has no version {version}",
                hint=f"it has {', '.join(versions)}",
            )
        needed = min(Version(header.min_version) for header in fitting)
        if needed > sdk:
            raise ConfigError(
                f"{role}.model_version: {model_id} {version} needs version {needed} of the SageMaker SDK",
                hint="upgrade sagemaker-core, or choose an older version of the model",
            )

    def _refuse_unknown(self, role: Role, model_id: str, known: list[str]) -> None:
        if any(header.model_id == model_id for header in self._headers(JumpStartModelType.PROPRIETARY)):
            raise ConfigError(
                f"{role}.model: {model_id} is sold on AWS Marketplace, which deploy-models does not deploy",
                hint=f"subscribe and deploy it there, then name its endpoint under {role}.endpoint",
            )
        close = get_close_matches(model_id, known, n=1, cutoff=0)
        raise ConfigError(
            f"{role}.model: JumpStart in {self._region} has no model {model_id}",
            hint=f"did you mean {close[0]}?" if close else None,
        )

    def _headers(self, kind: Any) -> list[Any]:
        return list(
            JumpStartModelsAccessor._get_manifest(  # noqa: SLF001 - the public one is deprecated, and takes no client
                region=self._region, s3_client=self._session.s3_client, model_type=kind
            )
        )

    def _check_deployable(self, role: Role, specs: Any, config: str | None) -> None:
        where = f"{role}.model: {specs.model_id} {specs.version}"
        if specs.use_inference_script_uri():
            raise ConfigError(
                f"{where} needs a script packed into its artefact, which deploy-models does not do"
            )
        if specs.get_additional_s3_data_sources():
            configs = sorted(specs.inference_configs.configs) if specs.inference_configs else []
            raise ConfigError(
                f"{where}: its configuration {config} wants data of a second model, which deploy-models does not give",
                hint=f"choose another under deployment.{role}.inference_config: {', '.join(configs)}",
            )

    @contextmanager
    def _refusals(self, role: Role, model_id: str) -> Iterator[None]:
        try:
            yield
        except DeprecatedJumpStartModelError as error:
            raise Refused(
                f"{role}.model: {model_id} is deprecated: {error}", hint="choose another model or version"
            ) from error
        except VulnerableJumpStartModelError as error:
            raise Refused(
                f"{role}.model: {model_id} has known vulnerabilities: {error}", hint="choose another version"
            ) from error
        except (KeyError, ValueError, RuntimeError) as error:  # the SDK's words say what it misses
            said = " ".join(str(error.args[0] if error.args else error).split())
            raise ConfigError(f"{role}.model: {model_id}: {said}") from error

    def _hub_arn(self, hub: str | None) -> str | None:
        if hub is None:
            return None
        with aws_errors("sts:GetCallerIdentity", "the caller"):
            account = client("sts", self._experiment).get_caller_identity()["Account"]
        return f"arn:{partition(self._experiment)}:sagemaker:{self._region}:{account}:hub/{hub}"


def _bodies(specs: Any) -> list[Any]:
    return [payload.body for payload in (specs.default_payloads or {}).values()]
