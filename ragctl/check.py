"""What a valid experiment file can still get wrong: files that it names, questions, gate rules, filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ragctl.errors import ConfigError

if TYPE_CHECKING:
    from ragctl.config import Experiment
    from ragctl.datasets import Question


def check(experiment: Experiment, path: Path) -> None:
    """Look at everything that can be seen without calling a service. Raises ConfigError with every fault and its
    hint.
    """
    faults: list[str] = []
    for part in _parts(experiment):
        try:
            part()
        except ConfigError as error:
            faults.append(error.listed())
    if faults:
        raise ConfigError(f"{path} cannot run as it stands" + "".join(faults))


def _parts(experiment: Experiment) -> Iterator[Callable[[], object]]:
    from ragctl import fingerprints, indexes, prompts
    from ragctl.chunking import token_counter
    from ragctl.filters import normalise
    from ragctl.globs import compile_path_pattern

    for number, source in enumerate(experiment.sources):
        if source.kind == "local":
            yield partial(_exists, f"sources.{number}.path", source.path)
        if source.path_metadata:
            yield partial(compile_path_pattern, source.path_metadata)
    for one in indexes.named(experiment):
        yield partial(fingerprints.of_sources, one)
        if one.chunking.tokenizer:
            yield partial(token_counter, one.chunking)
    yield lambda: _searches_words(experiment)
    condition = experiment.retrieval.filter
    if condition is not None:
        yield lambda: normalise(condition)
    if experiment.generation.kind != "extractive":
        template = experiment.generation.prompt
        yield lambda: prompts.load_template(template)
    yield from _evaluation_parts(experiment)


def _evaluation_parts(experiment: Experiment) -> Iterator[Callable[[], object]]:
    from ragctl.datasets import load_questions
    from ragctl.gate import parse_gate
    from ragctl.metrics import check_rank_metrics

    evaluation = experiment.evaluation
    if evaluation is None:
        return
    dataset = evaluation.dataset
    if dataset.kind == "beir":
        yield lambda: _has_source(experiment, dataset.source)
    yield lambda: _tenants_named(experiment, load_questions(evaluation.dataset))
    yield lambda: check_rank_metrics(evaluation.metrics)
    yield lambda: parse_gate(evaluation.gate)


def _tenants_named(experiment: Experiment, questions: Sequence[Question]) -> None:
    """Every question says whose documents it is about, where those are kept apart, and none does elsewhere."""
    tenancy = experiment.tenancy
    if tenancy is None:
        wrong = [question.id for question in questions if question.tenant is not None]
        fault = "name a tenant, but the experiment has no tenancy section"
    else:
        wrong = [question.id for question in questions if tenancy.required and question.tenant is None]
        fault = "name no tenant; give them one, or all of them with evaluation.dataset.tenant"
    if wrong:
        shown = ", ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
        raise ConfigError(f"evaluation.dataset: {len(wrong)} of {len(questions)} questions {fault}: {shown}")


def _searches_words(experiment: Experiment) -> None:
    mode = experiment.retrieval.mode
    if mode != "vector" and not experiment.store.text_search:
        raise ConfigError(f"retrieval.mode: {mode} needs a text index, and store.text_search is false")


def _has_source(experiment: Experiment, name: str) -> None:
    known = [source.name for source in experiment.sources]
    if name not in known:
        raise ConfigError(f"evaluation.dataset.source: there is no source {name}; known: {', '.join(known)}")


def _exists(setting: str, path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{setting}: {path} does not exist")
