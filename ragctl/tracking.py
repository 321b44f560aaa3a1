"""Each evaluation as an MLflow run; the only module that imports MLflow (extras: mlflow, sagemaker-mlflow).

A tracking URI is sqlite:///FILE, the http address of a server, or the ARN of a SageMaker tracking server or MLflow App.
For an ARN, MLflow finds AWS credentials by itself, in the environment; SAGEMAKER_MLFLOW_ASSUME_ROLE_ARN names a role.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from ragctl.errors import MissingExtra, ServiceError

if TYPE_CHECKING:
    from ragctl.config import Experiment, Tracking
    from ragctl.estimates import Estimate

# Read by MLflow when it is imported or first calls; what the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # our own handlers decide what is shown
    # A server that is down would else hold the command for minutes: 7 tries of 120 s, with growing pauses.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_SQLITE = "sqlite:///"
_PARTS = ("low", "high", "scored", "unscored")


def require_mlflow(tracking: Tracking) -> None:
    """Raise MissingExtra unless what the URI needs is installed; before anything is asked or paid for."""
    if find_spec("mlflow") is None:
        raise MissingExtra("tracking", "mlflow")
    if tracking.uri.startswith("arn:") and find_spec("sagemaker_mlflow") is None:
        raise MissingExtra("tracking on SageMaker", "sagemaker-mlflow")


def parameters(experiment: Experiment, *, chunks: int, chunking_seconds: float | None) -> dict[str, str]:
    """What AWS's RAG walk-through logs of each run, and how it retrieved. Values that nobody knows are left out.

    `chunks` is their number in the index, `chunking_seconds` what cutting them took, if the ledger still knows.
    """
    chunking, retrieval = experiment.chunking, experiment.retrieval
    known = {
        "experiment": experiment.name,
        "chunking_strategy": chunking.kind,
        "chunk_size": chunking.size,
        "chunk_overlap": chunking.overlap,
        "chunk_unit": chunking.unit,
        "number_of_chunks": chunks,
        "chunking_seconds": None if chunking_seconds is None else round(chunking_seconds, 3),
        **_model("embedding", experiment.embedding),
        **_model("generation", experiment.generation),
        "retrieval_mode": retrieval.mode,
        "retrieval_top_k": retrieval.top_k,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _model(role: str, section: Any) -> dict[str, object]:
    """Id and version of a section's model: the name it goes by, else its folder or endpoint, else its kind."""
    names = (getattr(section, key, None) for key in ("model", "path", "endpoint"))
    return {
        f"{role}_kind": section.kind,
        f"{role}_model_id": next((name for name in names if name is not None), section.kind),
        f"{role}_model_version": getattr(section, "model_version", None),
    }


def metric_key(name: str) -> str:
    """The name that MLflow accepts for one of our metrics: nDCG@10 is nDCG_at_10."""
    return name.replace("@", "_at_")


def track(
    tracking: Tracking,
    name: str,
    params: Mapping[str, str],
    metrics: Mapping[str, Estimate],
    tags: Mapping[str, str],
    artifacts: Sequence[Path],
) -> str:
    """Log one run and return its URL, or its id where there is no server to look at.

    Each metric is logged with its interval and counts, as `nDCG_at_10`, `nDCG_at_10.low` and so on. A run that could
    not be logged to the end is marked as failed. Raises MissingExtra, or ServiceError when MLflow fails: call it when
    the evaluation is saved.
    """
    require_mlflow(tracking)
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with _mlflow_errors(tracking.uri):
        import mlflow

        if tracking.uri.startswith(_SQLITE):
            _open_once(_sqlite_path(tracking.uri))
        mlflow.set_tracking_uri(tracking.uri)  # sagemaker-mlflow reads it here and nowhere else
        client = mlflow.MlflowClient()
        with _without_plugin_noise(tracking.uri):
            experiment = _experiment_id(client, tracking)
            run = client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id
            with _ended(client, run):
                client.log_batch(run, metrics=_entities(metrics), params=_params(params))
                for artifact in artifacts:
                    client.log_artifact(run, str(artifact))
    return _address(tracking.uri, experiment, run)


def reach(tracking: Tracking) -> str:
    """Where the server is, once it has answered; MissingExtra, or ServiceError when it does not."""
    require_mlflow(tracking)
    for variable, value in {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        os.environ.setdefault(variable, value)
    try:
        with _mlflow_errors(tracking.uri):
            import mlflow

            mlflow.set_tracking_uri(tracking.uri)  # sagemaker-mlflow reads it here and nowhere else
            with _without_plugin_noise(tracking.uri):
                mlflow.MlflowClient().search_experiments(max_results=1)
    except ServiceError as error:
        raise ServiceError(error.message) from error
    return _shown(tracking.uri)


def _experiment_id(client: Any, tracking: Tracking) -> str:
    """The experiment's id, made if it is not there; another process may make it at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(tracking.experiment)
    if found is None:
        try:
            return str(client.create_experiment(tracking.experiment, _artifact_location(tracking.uri)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(tracking.experiment)
    if found.lifecycle_stage == "deleted":
        raise ServiceError(
            f"MLflow: experiment {tracking.experiment!r} is deleted",
            hint="restore it, or name another under tracking.experiment",
        )
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Beside an sqlite file; MLflow would take the working directory. A server decides for itself."""
    return (_sqlite_path(uri).parent / "mlartifacts").as_uri() if uri.startswith(_SQLITE) else None


def _sqlite_path(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE)).absolute()


def _open_once(path: Path) -> None:
    """Make the folder of a database and read from it: MLflow tries for minutes where it cannot be opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA schema_version")


def _entities(metrics: Mapping[str, Estimate]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time() * 1000)
    values = {
        key if part is None else f"{key}.{part}": getattr(estimate, part or "value")
        for key, estimate in ((metric_key(name), estimate) for name, estimate in metrics.items())
        for part in (None, *_PARTS)
    }
    return [Metric(key, value, now, 0) for key, value in values.items() if value is not None]


def _params(params: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, value) for name, value in params.items()]


@contextmanager
def _ended(client: Any, run: str) -> Iterator[None]:
    """Mark the run as finished, or as failed when the block raises, if MLflow still answers then."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except BaseException:
        with suppress(MlflowException):
            client.set_terminated(run, status="FAILED")
        raise
    client.set_terminated(run)


@contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """Everything that MLflow, its database, its server or AWS throws, as a ServiceError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    kinds = [MlflowException, BotoCoreError, ClientError, Boto3Error, sqlite3.Error, OSError]
    if uri.startswith(_SQLITE):  # of the extras, only the one for files brings SQLAlchemy
        from sqlalchemy.exc import SQLAlchemyError

        kinds.append(SQLAlchemyError)
    try:
        yield
    except tuple(kinds) as error:
        what = str(error).partition("\n")[0].replace(uri, _shown(uri))
        raise ServiceError(
            f"MLflow at {_shown(uri)}: {what}", hint="the evaluation itself is saved; see its run.json"
        ) from error


@contextmanager
def _without_plugin_noise(uri: str) -> Iterator[None]:
    """sagemaker-mlflow, where installed, warns at every request to a server that is not SageMaker's."""
    logger = logging.getLogger("mlflow.tracking.request_header.registry")

    def keep(_: logging.LogRecord) -> bool:
        return uri.startswith("arn:")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _address(uri: str, experiment: str, run: str) -> str:
    if not uri.startswith(("http://", "https://")):
        return run
    return f"{_shown(uri).rstrip('/')}/#/experiments/{experiment}/runs/{run}"


def _shown(uri: str) -> str:
    """The URI without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)
