from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragctl.commands.events import printable
from ragctl.commands.options import (
    Config,
    Index,
    Json,
    LogJson,
    Output,
    Quiet,
    Set,
    Verbose,
    as_json,
    load,
    setup,
)

if TYPE_CHECKING:
    from ragctl.errors import RagctlError
    from ragctl.query import QueryEngine, QueryOptions
    from ragctl.records import Answer, Hit

_Asked = tuple[str, "QueryOptions"]  # a question, and how it is asked

FAULTS_SHOWN = 20  # of lines that cannot be asked


class Mode(StrEnum):
    vector = "vector"
    text = "text"
    hybrid = "hybrid"


def command(
    config: Config,
    question: Annotated[
        str | None, typer.Argument(help='The question; "-" reads it from stdin.', show_default=False)
    ] = None,
    overrides: Set = None,
    *,
    index: Index = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", help="Hits to use.", show_default=False)
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="How to search.", show_default=False)] = None,
    filter_text: Annotated[
        str | None,
        typer.Option(
            "--filter", metavar="JSON", help='For example \'{"year": {"$gte": 2022}}\'', show_default=False
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose documents to search.", show_default=False)] = None,
    retrieve_only: Annotated[
        bool, typer.Option("--retrieve-only", help="Show hits, generate nothing.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show how each hit came to its place.")] = False,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="One question a line, or JSONL: question, filter, tenant. Prints one JSON document a line.",
            show_default=False,
        ),
    ] = None,
    json_output: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_json: LogJson = False,
) -> None:
    """Answer a question from the index, with citations.

    \b
    Examples:
      ragctl query configs/samples.yaml "What did revenue come to in 2023?"
      ragctl query configs/samples.yaml "warranty" --retrieve-only --mode text --json
      echo "Who founded the company?" | ragctl query configs/samples.yaml -
    """
    output = setup(json_output=json_output, quiet=quiet, verbose=verbose, log_json=log_json)
    from ragctl.errors import ConfigError

    if (question is None) == (questions is None):
        raise ConfigError("ask one QUESTION, or many with --questions FILE")
    from ragctl.indexes import only

    experiment = only(load(config, overrides), index)
    from ragctl.query import QueryEngine, QueryOptions

    options = QueryOptions(
        mode=mode.value if mode else None,
        top_k=top_k,
        filter=_filter(filter_text),
        tenant=tenant,
        retrieve_only=retrieve_only,
    )
    with QueryEngine(experiment) as engine:
        if questions is not None:
            _ask_many(engine, questions, options, explain=explain)
        else:
            assert question is not None
            text = _read(Path("-")).strip() if question == "-" else question
            _ask_one(engine, text, options, output, explain=explain)


def _filter(text: str | None) -> dict[str, Any] | None:
    """Raises FilterError, before a question is read, for one that is not valid."""
    from ragctl.errors import FilterError
    from ragctl.filters import normalise

    if text is None:
        return None
    try:
        value = json.loads(text)
    except RecursionError:
        raise FilterError("--filter is nested too deeply") from None
    except ValueError as error:
        raise FilterError(
            f"--filter is not JSON: {error}", hint="quote it for the shell: --filter '{\"year\": 2023}'"
        ) from error
    if not isinstance(value, dict):
        raise FilterError("--filter must be a JSON object", hint='for example {"year": 2023}')
    normalise(value)
    return value


def _ask_one(
    engine: QueryEngine, question: str, options: QueryOptions, output: Output, *, explain: bool
) -> None:
    from ragctl.query import to_json

    if output.json:
        answer = engine.ask(question, options)
        output.result(to_json(answer, explain=explain), lambda: None)
        return
    streamed: list[str] = []

    def show(piece: str) -> None:
        streamed.append(piece)
        typer.echo(printable(piece, lines=True), nl=False)

    answer = engine.ask(question, options, show)
    if answer.text is not None:
        typer.echo("" if streamed else printable(answer.text, lines=True))
        typer.echo()
        _show_citations(answer)
    else:
        _show_hits(answer.hits)
    if explain:
        _show_ranks(answer)


def _show_citations(answer: Answer) -> None:
    for citation in answer.citations:
        page = f", page {citation.page}" if citation.page is not None else ""
        typer.echo(f"  [{citation.marker}] {printable(citation.document)}{page}")


def _show_hits(hits: tuple[Hit, ...]) -> None:
    if not hits:
        typer.echo("no hits")
    for number, hit in enumerate(hits, 1):
        page = f", page {hit.page}" if hit.page is not None else ""
        typer.echo(f"{number}. {printable(hit.document)}{page}  (score {hit.score:.4g})")
        text = " ".join(hit.text.split())
        typer.echo(f"   {printable(text[:300])}{'...' if len(text) > 300 else ''}")


def _show_ranks(answer: Answer) -> None:
    """How each hit came to its place; a dash where a ranking did not have it."""
    typer.echo()
    typer.echo("    vector  distance  text    bm25   fused    rerank")
    for number, hit in enumerate((*answer.hits, *answer.cut), 1):
        r = hit.ranks
        cells = (
            f"{_cell(r.vector_rank, 'd'):>6}  {_cell(r.vector_distance, '.4f'):>8}  {_cell(r.text_rank, 'd'):>4}  "
            f"{_cell(r.text_score, '.3f'):>6}  {_cell(r.fused_score, '.4f'):>6}  {_cell(r.rerank_score, '.4f'):>8}"
        )
        cut = "  cut" if number > len(answer.hits) else ""
        typer.echo(f"{number:>3} {cells}  {printable(hit.document)}{cut}")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ask_many(engine: QueryEngine, path: Path, options: QueryOptions, *, explain: bool) -> None:
    """One JSON line for each question, in order; one that fails is a line as well, and keeps no other from being asked.

    Raises PartialFailure where some failed, what the first failed with where all did, and at once what every other
    question would fail with.
    """
    from ragctl.errors import PartialFailure, RagctlError
    from ragctl.query import to_json

    failures: list[RagctlError] = []
    asked = _read_questions(path, engine, options)
    for question, its_options in asked:
        try:
            answer = engine.ask(question, its_options)
        except RagctlError as error:
            if not _is_of_one_question(error):
                raise
            failures.append(error)
            typer.echo(as_json({"schema": "ragctl.query/1", "question": question, "error": error.message}))
            continue
        typer.echo(as_json(to_json(answer, explain=explain)))
    if len(failures) == len(asked):
        raise failures[0]
    if failures:
        raise PartialFailure(f"{len(failures)} of {len(asked)} questions failed")


def _is_of_one_question(error: RagctlError) -> bool:
    """Whether another question, of another tenant and with another filter, may have an answer all the same."""
    from ragctl.errors import CredentialsError, FilterError, ItemRefused, ServiceError, TenantLeak

    return isinstance(error, ItemRefused | ServiceError | FilterError) and not isinstance(
        error, CredentialsError | TenantLeak
    )


def _read_questions(path: Path, engine: QueryEngine, options: QueryOptions) -> list[_Asked]:
    """All of them, before the first is asked. Raises ConfigError that lists the lines at fault."""
    from ragctl.errors import ConfigError

    split = _read(path).split("\n")  # not splitlines(): JSON may hold other line separators as they are
    lines = [(number, line.strip()) for number, line in enumerate(split, 1) if line.strip()]
    if not lines:
        raise ConfigError(f"--questions {path}: there is no question in it")
    asked: list[_Asked] = []
    faults: list[str] = []
    for number, line in lines:
        try:
            question, its_options = _question(line, options)
            engine.check(question, its_options)
        except ConfigError as error:
            faults.append(error.listed(f"line {number}: "))
            continue
        asked.append((question, its_options))
    if faults:
        more = f"\n  and {len(faults) - FAULTS_SHOWN:,} more" if len(faults) > FAULTS_SHOWN else ""
        shown = "".join(faults[:FAULTS_SHOWN])
        raise ConfigError(f"--questions {path}: not every line is a question{shown}{more}")
    return asked


def _question(line: str, options: QueryOptions) -> _Asked:
    """The question in a line of text or JSON, and its options: `options`, with the filter and tenant of the line.

    Raises ConfigError for a line that is none.
    """
    from dataclasses import replace

    from ragctl.datasets import GOLDEN_KEYS
    from ragctl.errors import ConfigError

    if not line.startswith("{"):
        return line, options
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = {}
    question, own_filter = record.get("question"), record.get("filter")
    if not isinstance(question, str):
        raise ConfigError('must be JSON with a "question"')
    if unknown := sorted(record.keys() - GOLDEN_KEYS):
        raise ConfigError(
            f"{unknown[0]}: unknown key; known: question, filter, tenant, and those of a golden set"
        )
    if not isinstance(own_filter, dict | None) or own_filter == {}:
        raise ConfigError("filter: must be a JSON object that is not empty")
    filters = [one for one in (options.filter, own_filter) if one]
    both = {"$and": filters} if len(filters) > 1 else next(iter(filters), None)
    return question, replace(options, filter=both, tenant=_tenant(record, options.tenant))


def _tenant(record: dict[str, Any], given: str | None) -> str | None:
    """Whose documents a line asks for: its own word, or that of --tenant, and never two."""
    from ragctl.errors import ConfigError
    from ragctl.tenancy import tenant_of

    if record.get("tenant") is None:
        return given
    own = tenant_of(record, "tenant")
    if own is None:
        raise ConfigError("tenant: must be a text or a whole number")
    if given not in (None, own):
        raise ConfigError(f"tenant: {own} is not that of --tenant, {given}")
    return own


def _read(path: Path) -> str:
    """The text of a file; of stdin for "-"."""
    from ragctl.errors import ConfigError

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--questions {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        source = "stdin" if str(path) == "-" else f"--questions {path}"
        raise ConfigError(f"{source} is not valid UTF-8", hint="convert it first") from error
