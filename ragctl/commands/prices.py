from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ragctl.commands.options import Config, DryRun, Json, LogJson, Quiet, Set, Verbose, load, setup

if TYPE_CHECKING:
    from ragctl.config import Experiment

app = typer.Typer(help="The prices that plans and budgets reckon with.", no_args_is_help=True)


@app.command("refresh")
def refresh_command(
    config: Config,
    overrides: Set = None,
    *,
    dry_run: DryRun = False,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Fetch the prices of endpoint instances in the experiment's region from AWS into its state location.

    \b
    Example:
      ragctl prices refresh configs/s3vectors-jumpstart.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    from ragctl import cost
    from ragctl.adapters.aws import region
    from ragctl.state import open_state

    state = open_state(experiment)
    count, where = cost.refresh(experiment, state, dry_run=dry_run), region(experiment)
    place = "not kept" if dry_run else f"in {state.place}/{cost.NAME}"
    output.result(
        {"schema": "ragctl.prices-refresh/1", "region": where, "instances": count, "dry_run": dry_run},
        lambda: typer.echo(f"{where}: prices of {count:,} instance types, {place}"),
    )


@app.command("show")
def show_command(
    config: Config,
    overrides: Set = None,
    *,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Show every price that is known for the experiment, with its source and the date on which it was read.

    \b
    Example:
      ragctl prices show configs/s3vectors-jumpstart.yaml
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    experiment = load(config, overrides)
    prices = _prices(experiment)

    def show() -> None:
        for price in prices:
            usd = "unknown" if price["usd"] is None else f"${price['usd']:g}"
            read = f", read {price['read']}" if price["read"] else ""
            typer.echo(f"{price['item']}: {usd} per {price['per']}  [{price['source']}{read}]")

    output.result({"schema": "ragctl.prices-show/1", "prices": prices}, show)


def _prices(experiment: Experiment) -> list[dict[str, Any]]:
    return [*_models(experiment), *_store(experiment), *_instances(experiment)]


def _row(item: str, per: str, usd: float | None, source: str, read: object = None) -> dict[str, Any]:
    return {
        "item": item,
        "per": per,
        "usd": usd,
        "source": source,
        "read": None if read is None else str(read),
    }


def _models(experiment: Experiment) -> list[dict[str, Any]]:
    from ragctl.spending import MILLION, embedding_rate, generation_rates, reranking_rate

    read, written = generation_rates(experiment)
    rates = {
        "embedding": embedding_rate(experiment),
        "generation, read": read,
        "generation, written": written,
    }
    rows = [
        _row(item, "million tokens", None if rate.usd is None else rate.usd * MILLION, rate.why)
        for item, rate in rates.items()
    ]
    if experiment.reranking is not None:
        rate = reranking_rate(experiment)
        rows.append(
            _row("reranking", "thousand questions", None if rate.usd is None else rate.usd * 1_000, rate.why)
        )
    return rows


def _store(experiment: Experiment) -> list[dict[str, Any]]:
    if experiment.store.kind == "local":
        return [_row("local store", "anything", 0.0, "free: local")]
    from ragctl.cost import Prices
    from ragctl.spending import vector_prices

    found = vector_prices(experiment, Prices())
    if found is None:
        return [_row("S3 Vectors", "anything", None, "no price is known in this region")]
    rows = [
        ("S3 Vectors storage", "GiB and month", found.storage_gb_month),
        ("S3 Vectors puts", f"GiB, each request at least {found.put_min_bytes:,} bytes", found.put_gb),
        ("S3 Vectors queries", "thousand, without the data that they read", found.queries_1000),
    ]
    lower = 0
    for upper, usd in found.processed_tb:
        which = f"vectors {lower:,} to {upper:,}" if upper else f"vectors from {lower:,} on"
        rows.append(("S3 Vectors data read by queries", f"TiB of {which}", usd))
        lower = upper or lower
    return [_row(*row, found.source, found.read) for row in rows]


def _instances(experiment: Experiment) -> list[dict[str, Any]]:
    from ragctl import cost
    from ragctl.deploy_plan import wants_models
    from ragctl.state import open_state

    if not wants_models(experiment):
        return []
    from ragctl.adapters.aws import region

    found = cost.load(open_state(experiment)).instances(region(experiment))
    if not found:
        return [_row("endpoint instances", "hour", None, "fetch them: ragctl prices refresh CONFIG")]
    return [_row(name, "hour", price.usd, price.source, price.read) for name, price in sorted(found.items())]
