"""Evaluations as MLflow runs: in a file, on a real server, and through SageMaker's plugin."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ragctl import tracking
from ragctl.config import Tracking
from ragctl.errors import MissingExtra, ServiceError
from ragctl.estimates import Estimate
from ragctl.tracking import parameters, require_mlflow, track
from tests.experiments import experiment
from tests.servers.mlflow import MlflowServer

# mlflow 3.17 uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ARN = "arn:aws:sagemaker:eu-central-1:123456789012:mlflow-tracking-server/evaluations"
METRICS = {
    "nDCG@10": Estimate(0.7, 0.6, 0.8, scored=59, unscored=1),
    "abstention_recall": Estimate(None, None, None, scored=0, unscored=1),
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for all tests: it takes seconds to start."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture(autouse=True)
def settings_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tracking sets for MLflow is undone after each test, and a dead server is not tried for long."""
    for variable, value in tracking._ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def artifacts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "run.json", tmp_path / "report.html"]
    for path in paths:
        path.write_text(f"this is {path.name}")
    return paths


def logged(uri: str, run: str, folder: Path) -> tuple[Any, dict[str, str]]:
    """The run as MLflow gives it back, and the texts of its artefacts."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    names = [info.path for info in client.list_artifacts(run)]
    folder.mkdir()
    return client.get_run(run), {
        name: Path(client.download_artifacts(run, name, str(folder))).read_text() for name in names
    }


def assert_is_all_there(run: Any, texts: dict[str, str]) -> None:
    assert (run.info.run_name, run.info.status) == ("20260101T000000Z-eval-abcdef", "FINISHED")
    assert run.data.params == {"chunk_size": "512"}
    assert run.data.tags["gate"] == "pass"
    assert run.data.metrics == {
        "nDCG_at_10": 0.7,
        "nDCG_at_10.low": 0.6,
        "nDCG_at_10.high": 0.8,
        "nDCG_at_10.scored": 59,
        "nDCG_at_10.unscored": 1,
        "abstention_recall.scored": 0,
        "abstention_recall.unscored": 1,
    }
    assert texts == {"run.json": "this is run.json", "report.html": "this is report.html"}


def log(uri: str, artifacts: list[Path], name: str = "ragctl") -> str:
    return track(
        Tracking(uri=uri, experiment=name),
        "20260101T000000Z-eval-abcdef",
        {"chunk_size": "512"},
        METRICS,
        {"gate": "pass"},
        artifacts,
    )


def test_a_run_in_an_sqlite_file(
    tmp_path: Path, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is made, and the artefacts lie beside the file and not wherever the command was started."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}"
    run = log(uri, artifacts)
    assert_is_all_there(*logged(uri, run, tmp_path / "back"))
    assert {path.name for path in (tmp_path / "tracking").iterdir()} == {"mlflow.db", "mlartifacts"}
    assert not (tmp_path / "mlruns").exists()


def test_a_run_on_a_server(server: MlflowServer, tmp_path: Path, artifacts: list[Path]) -> None:
    """The answer is where to look at it; a second run goes into the same experiment."""
    first, second = (log(server.url, artifacts) for _ in range(2))
    place, _, run = first.rpartition("/runs/")
    assert place.startswith(f"{server.url}/#/experiments/")
    assert second.startswith(place)
    assert_is_all_there(*logged(server.url, run, tmp_path / "back"))


def test_a_run_on_sagemaker(
    server: MlflowServer, tmp_path: Path, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by the plugin, which is sent to our server here; the artefacts go straight to their store."""
    from mlflow import MlflowClient

    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", server.url)
    MlflowClient(server.url).create_experiment("on-sagemaker", (tmp_path / "store").as_uri())
    run = log(ARN, artifacts, "on-sagemaker")
    assert_is_all_there(*logged(server.url, run, tmp_path / "back"))


def test_no_credentials_for_sagemaker_is_a_service_error(
    server: MlflowServer, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no traceback of a plugin."""
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", server.url)
    with pytest.raises(ServiceError) as caught:
        log(ARN, artifacts)
    assert caught.value.message.startswith(f"MLflow at {ARN}: ")


def test_the_plugin_does_not_warn_at_every_request(
    server: MlflowServer, artifacts: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """It is installed here, and tries to read a plain server's address as an ARN."""
    with caplog.at_level(logging.WARNING):
        log(server.url, artifacts)
    assert not [record for record in caplog.records if record.name.startswith("mlflow")]


def test_a_server_that_is_down_is_a_service_error(artifacts: list[Path]) -> None:
    """It names the place without the password, and says that nothing is lost."""
    with pytest.raises(ServiceError) as caught:
        log("http://me:secret@127.0.0.1:9", artifacts)
    assert caught.value.message.startswith("MLflow at http://127.0.0.1:9: ")
    assert "secret" not in caught.value.message
    assert caught.value.hint == "the evaluation itself is saved; see its run.json"


def test_a_deleted_experiment_is_told(server: MlflowServer, artifacts: list[Path]) -> None:
    """MLflow keeps the name, so nobody can make it anew."""
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ServiceError, match="MLflow: experiment 'gone' is deleted"):
        log(server.url, artifacts, "gone")


def test_a_run_that_could_not_be_logged_to_the_end_says_failed(
    server: MlflowServer, tmp_path: Path, artifacts: list[Path]
) -> None:
    """It is not left running for ever."""
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    name = client.create_experiment("incomplete")
    with pytest.raises(ServiceError, match=r"absent\.html"):
        log(server.url, [*artifacts, tmp_path / "absent.html"], "incomplete")
    (run,) = client.search_runs([name])
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("content", [None, b"not a database" * 100])
def test_a_file_that_is_no_database_is_told_at_once(
    tmp_path: Path, artifacts: list[Path], content: bytes | None
) -> None:
    """MLflow alone would try for minutes."""
    path = tmp_path / "mlflow.db"
    path.mkdir() if content is None else path.write_bytes(content)
    reason = "unable to open database file" if content is None else "file is not a database"
    with pytest.raises(ServiceError) as caught:
        log(f"sqlite:///{path}", artifacts)
    assert caught.value.message == f"MLflow at sqlite:///{path}: {reason}"


@pytest.mark.parametrize(
    "uri",
    ["databricks", "sqlite:///", "file:///tmp", "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/x"],
)
def test_other_addresses_are_a_configuration_error(uri: str) -> None:
    """Found by `config check`, not after the evaluation."""
    with pytest.raises(ValidationError):
        Tracking(uri=uri)


@pytest.mark.parametrize(
    ("uri", "absent", "extra"),
    [("sqlite:///x.db", "mlflow", "mlflow"), (ARN, "sagemaker_mlflow", "sagemaker-mlflow")],
)
def test_the_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, uri: str, absent: str, extra: str
) -> None:
    """So that it can be found before the evaluation is paid for."""
    monkeypatch.setattr("ragctl.tracking.find_spec", lambda name: None if name == absent else object())
    with pytest.raises(MissingExtra) as caught:
        require_mlflow(Tracking(uri=uri))
    assert caught.value.hint == f'install it with: pip install "ragctl[{extra}]"'


def test_the_parameters_are_those_of_the_walk_through() -> None:
    """Chunking, number of chunks, time, and both models with their versions."""
    given = experiment(
        chunking={"kind": "sentences", "size": 512, "overlap": 64, "unit": "tokens"},
        generation={"kind": "sagemaker", "model": "deepseek-llm-r1", "model_version": "2.0.2"},
        retrieval={"mode": "text", "top_k": 5},
    )
    assert parameters(given, chunks=1234, chunking_seconds=1.23456) == {
        "experiment": "test",
        "chunking_strategy": "sentences",
        "chunk_size": "512",
        "chunk_overlap": "64",
        "chunk_unit": "tokens",
        "number_of_chunks": "1234",
        "chunking_seconds": "1.235",
        "embedding_kind": "hashing",
        "embedding_model_id": "hashing",
        "generation_kind": "sagemaker",
        "generation_model_id": "deepseek-llm-r1",
        "generation_model_version": "2.0.2",
        "retrieval_mode": "text",
        "retrieval_top_k": "5",
    }


def test_what_nobody_knows_is_left_out() -> None:
    """A run of months ago may have cut the chunks."""
    assert "chunking_seconds" not in parameters(experiment(), chunks=1, chunking_seconds=None)


def test_telemetry_is_off_unless_somebody_turned_it_on(
    server: MlflowServer, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set before MLflow is imported; what the user has set stays."""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    log(server.url, artifacts)
    assert (os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("true", "false")
