from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ragctl.commands.options import (
    Config,
    DryRun,
    Json,
    LogJson,
    Quiet,
    Set,
    Verbose,
    Yes,
    confirm,
    load,
    setup,
)
from ragctl.commands.recording import recording

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.indexes import Resource
    from ragctl.state import State


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Annotated[bool, typer.Option("--index", help="The index and its ledger.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All that this experiment made.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    r"""Remove what this experiment made. Sources and run reports are never touched.

    \b
    Examples:
      ragctl teardown configs/samples.yaml --index --dry-run
      ragctl teardown configs/samples.yaml --all --yes
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.errors import ConfigError

    if not (index or everything):
        raise ConfigError("say what to remove: --index or --all", hint="look first: --dry-run")
    resources = _plan(experiment)
    if not dry_run and any(resource.action == "delete" for resource in resources):
        confirm(
            f"Remove {', '.join(f'{r.type} {r.name}' for r in resources if r.action == 'delete')}?", yes=yes
        )
        resources = _remove(experiment)

    def show() -> None:
        for resource in resources:
            typer.echo(f"{resource.type} {resource.name}: {'would ' if dry_run else ''}{resource.action}")

    output.result({"schema": "ragctl.teardown/1", "resources": [asdict(r) for r in resources]}, show)


def _plan(experiment: Experiment) -> list[Resource]:
    from ragctl.state import open_state
    from ragctl.tenancy import per_index

    state = open_state(experiment)
    return [resource for one in per_index(experiment, state) for resource in _planned(one, state)]


def _planned(experiment: Experiment, state: State) -> list[Resource]:
    from ragctl.adapters import open_store
    from ragctl.indexes import Resource
    from ragctl.ingest import ledger_name

    store = open_store(experiment)
    try:
        has_index = store.describe() is not None
    finally:
        store.close()
    has_ledger = state.read(ledger_name(experiment.store.index)) is not None
    name = experiment.store.index
    return [
        Resource("index", name, "delete" if has_index else "absent"),
        Resource("ledger", name, "delete" if has_ledger else "absent"),
    ]


def _remove(experiment: Experiment) -> list[Resource]:
    from ragctl import tenancy
    from ragctl.ingest import lease_name
    from ragctl.lease import hold
    from ragctl.state import open_state

    state = open_state(experiment)
    with recording("teardown", experiment) as run, ExitStack() as stack:
        if tenancy.has_index_each(experiment):  # no ingest may make the index of another tenant meanwhile
            stack.enter_context(hold(state, lease_name(experiment.store.index), "teardown"))
        removed = [_removed(one, state) for one in tenancy.per_index(experiment, state)]
        if tenancy.has_index_each(experiment):
            tenancy.Registry(experiment, state).remove()
        resources = [resource for some in removed for resource in some]
        run.finish("done", {"resources": [asdict(resource) for resource in resources]})
    return resources


def _removed(experiment: Experiment, state: State) -> list[Resource]:
    from ragctl.adapters import open_store
    from ragctl.indexes import Resource
    from ragctl.ingest import lease_name, ledger_name
    from ragctl.lease import hold

    name = experiment.store.index
    store = open_store(experiment)
    try:
        with hold(state, lease_name(name), "teardown"):
            dropped = store.drop()
            state.delete(ledger_name(name))
    finally:
        store.close()
    return [Resource("index", name, "deleted" if dropped else "absent"), Resource("ledger", name, "deleted")]
