from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragctl.commands.events import printable
from ragctl.commands.options import Json, LogJson, Quiet, Set, Verbose, load, setup, shown

if TYPE_CHECKING:
    from ragctl.status import Endpoint, Index, Status

ENDS = {"died": "ended without a word", "unknown": "running, or ended without a word"}
NOTHING_SEEN = "nothing was found, and not everything could be looked at"
WITHOUT_CONFIG = (
    "prices are kept in an experiment's state location: ragctl status CONFIG shows what its models cost"
)
WITHOUT_PRICES = "prices that are unknown may be fetched: ragctl prices refresh CONFIG"


def command(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG]", help="Experiment file; without it, the whole account.", show_default=False
        ),
    ] = None,
    overrides: Set = None,
    *,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Show what exists and what it costs: endpoints, indexes, who works on them, and how the last runs ended.

    Without CONFIG: everything in the account and region of the environment that carries ragctl's tags, orphans too,
    with prices where .ragctl/state in the current folder has some.

    \b
    Examples:
      ragctl status configs/samples.yaml
      AWS_PROFILE=research ragctl status --json
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    from ragctl.errors import ServiceError

    status = _of_account(overrides) if config is None else _of_experiment(config, overrides)
    output.result(status.to_json(), lambda: _show(status))
    if any(endpoint.ours and endpoint.usd_per_hour is None for endpoint in status.endpoints):
        output.say(WITHOUT_CONFIG if config is None else WITHOUT_PRICES)
    if status.faults:
        raise ServiceError(
            "not everything could be looked at:\n  " + "\n  ".join(dict.fromkeys(status.faults))
        )


def _of_experiment(config: Path, overrides: list[str] | None) -> Status:
    from ragctl.indexes import named
    from ragctl.status import of_experiment

    experiment = load(config, overrides)
    return of_experiment(experiment, named(experiment))


def _of_account(overrides: list[str] | None) -> Status:
    from ragctl.config import Experiment
    from ragctl.errors import ConfigError
    from ragctl.status import of_account

    if overrides:
        raise ConfigError("--set changes a CONFIG, and none is given", hint="use AWS_PROFILE and AWS_REGION")
    # The account and region are those of the environment; nothing else of it is asked.
    nobody = {"name": "account", "sources": [{"kind": "local", "name": "none", "path": "."}]}
    return of_account(Experiment.model_validate(nobody))


# --- for people ------------------------------------------------------------------------------------------


def _show(status: Status) -> None:
    for endpoint in status.endpoints:
        typer.echo(f"endpoint {endpoint.name}: {_endpoint(endpoint)}")
    for other in status.others:
        typer.echo(f"{other['type']} {other['name']}{': orphan' if other['orphan'] else ''}")
    for index in status.indexes:
        typer.echo(f"index {index.name}: {_index(index)}")
    for bucket in status.buckets:
        whose = "" if bucket.ours else " (not made by ragctl)"
        typer.echo(f"vector bucket {bucket.name}{whose}: {', '.join(bucket.indexes) or 'empty'}")
    for run in status.runs:
        verdict = f", gate {run.verdict}" if run.verdict and run.verdict != "none" else ""
        seconds = f" in {run.seconds:,.0f} s" if run.seconds is not None else ""
        how = ENDS.get(run.status, run.status)
        typer.echo(f"{run.started} {run.command}: {how}{seconds}{verdict}  {shown(run.path)}")
    if not (status.endpoints or status.others or status.indexes or status.buckets or status.runs):
        typer.echo(NOTHING_SEEN if status.faults else "nothing")


def _endpoint(endpoint: Endpoint) -> str:
    from ragctl.cost import per_hour

    parts = [f"{endpoint.state} ({printable(endpoint.reason)})" if endpoint.reason else endpoint.state]
    if not endpoint.ours:
        return f"{endpoint.state}, not ours"
    parts += [endpoint.instances] if endpoint.instances else []
    parts.append(per_hour(endpoint.usd_per_hour))
    if endpoint.age_hours is not None:
        parts.append(f"{endpoint.age_hours:,.1f} hours old")
    if endpoint.expires:
        parts.append(f"{'EXPIRED' if endpoint.expired else 'expires'} {endpoint.expires}")
    if endpoint.last_used:
        parts.append(f"last used {endpoint.last_used}")
    elif endpoint.use_known_since:
        parts.append(f"not used since {endpoint.use_known_since}")
    parts += ["orphan"] if endpoint.orphan else []
    return ", ".join(parts)


def _index(index: Index) -> str:
    from ragctl.sources.listing import not_read

    if not index.exists:
        text = "does not exist"
    elif index.ledger_lost:
        text = (
            f"{index.mode}, {index.dimension:,} dimensions, holds chunks but its ledger is lost: "
            "ragctl ledger rebuild CONFIG"
        )
    else:
        text = f"{index.mode}, {index.dimension:,} dimensions, {index.documents:,} documents in {index.chunks:,} chunks"
    if index.failures:
        text += f", {index.failures:,} failures waiting (ragctl failures CONFIG)"
    if index.ignored:
        text += f", {not_read(index.ignored)}"
    return text + (f", held by {index.holder}" if index.holder else "")
