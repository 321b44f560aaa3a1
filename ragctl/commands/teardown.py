from __future__ import annotations

from collections.abc import Sequence
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

BUCKET = "vector bucket"


def command(
    config: Config,
    overrides: Set = None,
    *,
    index: Annotated[bool, typer.Option("--index", help="The index and its ledger.")] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="NAME", help="Of several indexes, this one.", show_default=False),
    ] = None,
    bucket: Annotated[
        bool, typer.Option("--bucket", help="The vector bucket, when it is ours and empty then.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All that this experiment made.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Remove what this experiment made. Sources and run reports are never touched.

    \b
    Examples:
      ragctl teardown configs/samples.yaml --index --dry-run
      ragctl teardown configs/s3vectors-bedrock.yaml --index --bucket --yes
      ragctl teardown configs/samples.yaml --all --yes
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl.errors import ConfigError, Refused
    from ragctl.indexes import named

    if not (index or bucket or everything):
        raise ConfigError("say what to remove: --index, --bucket or --all", hint="look first: --dry-run")
    experiments = named(experiment, only) if index or everything else []
    with_bucket = bucket or (everything and experiment.store.kind == "s3vectors" and only is None)
    resources = _plan(experiment, experiments, with_bucket=with_bucket)
    if not dry_run and any(resource.action == "delete" for resource in resources):
        confirm(
            f"Remove {', '.join(f'{r.type} {r.name}' for r in resources if r.action == 'delete')}?", yes=yes
        )
        resources = _remove(experiment, experiments, with_bucket=with_bucket)

    def show() -> None:
        for resource in resources:
            why = f" ({resource.status})" if resource.status else ""
            typer.echo(
                f"{resource.type} {resource.name}: {'would ' if dry_run else ''}{resource.action}{why}"
            )

    output.result({"schema": "ragctl.teardown/1", "resources": [asdict(r) for r in resources]}, show)
    kept = [resource.status for resource in resources if resource.action == "kept"]
    if bucket and kept:
        raise Refused(kept[0], hint="remove what is in it, or leave it: an empty bucket costs nothing")


def _plan(experiment: Experiment, experiments: Sequence[Experiment], *, with_bucket: bool) -> list[Resource]:
    """What is there to be removed: of the indexes of `experiments`, and the bucket that they are made in."""
    from ragctl.adapters import s3vectors_store
    from ragctl.indexes import Resource
    from ragctl.state import open_state
    from ragctl.tenancy import per_index

    state = open_state(experiment)
    resources = [
        resource
        for named in experiments
        for one in per_index(named, state)
        for resource in _planned(one, state)
    ]
    if with_bucket:
        store = s3vectors_store(experiment)
        resources.append(Resource(BUCKET, store.bucket, "delete" if store.has_bucket() else "absent"))
    return resources


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


def _remove(
    experiment: Experiment, experiments: Sequence[Experiment], *, with_bucket: bool
) -> list[Resource]:
    with recording("teardown", experiment) as run:
        resources = [resource for one in experiments for resource in _removed_indexes(one)]
        if with_bucket:
            resources.append(_removed_bucket(experiment))
        run.finish("done", {"resources": [asdict(resource) for resource in resources]})
    return resources


def _removed_bucket(experiment: Experiment) -> Resource:
    from ragctl.adapters import s3vectors_store
    from ragctl.errors import Refused
    from ragctl.indexes import Resource

    store = s3vectors_store(experiment)
    try:
        dropped = store.drop_bucket()
    except Refused as error:
        return Resource(BUCKET, store.bucket, "kept", error.message)
    return Resource(BUCKET, store.bucket, "deleted" if dropped else "absent")


def _removed_indexes(experiment: Experiment) -> list[Resource]:
    from ragctl import tenancy
    from ragctl.ingest import lease_name
    from ragctl.lease import hold
    from ragctl.state import open_state

    state = open_state(experiment)
    with ExitStack() as stack:
        if tenancy.has_index_each(experiment):  # no ingest may make the index of another tenant meanwhile
            stack.enter_context(hold(state, lease_name(experiment.store.index), "teardown"))
        removed = [_removed(one, state) for one in tenancy.per_index(experiment, state)]
        if tenancy.has_index_each(experiment):
            tenancy.Registry(experiment, state).remove()
    return [resource for some in removed for resource in some]


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
