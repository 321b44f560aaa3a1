"""An experiment file to an `Experiment`: YAML, `extends`, `${ENV}`, `--set`, and every fault at once with its path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ragctl.backends import SECRET_VARIABLE, LocalStore
from ragctl.config import Experiment
from ragctl.errors import ConfigError

Tree = dict[str, Any]
Where = tuple[str | int, ...]

# Settings that name a place in the file system; "*" stands for any list index or key. Relative ones are meant from the
# file that says them, so they are resolved file by file, before `extends` merges. The defaults are meant from the
# experiment file itself.
PATHS: tuple[Where, ...] = (
    ("extends",),
    ("sources", "*", "path"),
    ("chunking", "tokenizer"),
    ("indexes", "*", "chunking", "tokenizer"),
    ("embedding", "path"),
    ("store", "path"),
    ("reranking", "path"),
    ("generation", "prompt"),
    ("evaluation", "dataset", "path"),
    ("cache", "path"),
    ("state",),
    ("runs",),
)
HIDDEN = "*" * 10  # as pydantic shows a secret
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})")


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in `path` with `overrides` ("section.key=value") applied; every path in it is absolute: those of
    a file are meant from its folder, those of an override from the current one.

    Raises ConfigError that lists every fault with its path in the file.
    """
    faults: list[str] = []
    tree = _read_chain(path, faults, ())
    for override in overrides:
        _apply(tree, override, faults)
    tree.pop("extends", None)
    tree = _merge(_default_places(path.resolve().parent), tree)
    experiment = None
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        faults += [_fault(detail, tree) for detail in error.errors(include_input=False, include_url=False)]
    if faults or experiment is None:
        lines = "".join(f"\n  {fault}" for fault in dict.fromkeys(faults))
        raise ConfigError(f"{path} is not a valid experiment{lines}")
    return experiment


def masked(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON values, fit for a report: secrets and passwords in URLs show as asterisks."""
    tree: Tree = _mask(experiment.model_dump(mode="json", exclude={"extends"}))
    return tree


def schema() -> dict[str, Any]:
    """The JSON Schema of an experiment file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(mode="validation"),
        "title": "ragctl experiment",
    }


# --- reading ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the plain loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_chain(path: Path, faults: list[str], below: tuple[Path, ...]) -> Tree:
    """The file's tree laid over that of the file it extends, and so on."""
    resolved = path.resolve()
    if resolved in below:
        raise ConfigError(
            f"{path}: extends itself, by way of {' -> '.join(p.name for p in (*below, resolved))}"
        )
    tree: Tree = _expand(_read(path), (), faults)
    _resolve(tree, resolved.parent)
    base = tree.get("extends")
    if base is None:
        return tree
    if not isinstance(base, str):
        faults.append(f"{path}: extends: must be the path of one file")
        return tree
    merged: Tree = _merge(_read_chain(Path(base), faults, (*below, resolved)), tree)
    return merged


def _read(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file",
            hint="give the path of an experiment file, for example configs/samples.yaml",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506  _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{at}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: an experiment is a mapping of sections, this is {_kind(tree)}")
    return cast("Tree", tree)


def _kind(value: object) -> str:
    return {type(None): "empty", list: "a list", str: "a text"}.get(type(value), "a single value")


def _expand(value: Any, where: Where, faults: list[str]) -> Any:
    """`${NAME}` and `${NAME:-default}` replaced in every text; `$$` is a dollar sign."""
    if isinstance(value, dict):
        return {key: _expand(item, (*where, key), faults) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*where, i), faults) for i, item in enumerate(value)]
    if not isinstance(value, str) or "$" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name is None:
            return "$"
        found = os.environ.get(name) or default
        if found is None:
            faults.append(
                f"{_dotted(where)}: the environment variable {name} is not set; "
                f"set it, or give a default: ${{{name}:-default}}"
            )
            return match[0]
        return found

    return _VARIABLE.sub(replace, value)


def _resolve(tree: Any, folder: Path) -> None:
    """Make the relative places of one file, or of one `--set`, absolute, in place."""
    for pattern in PATHS:
        for holder, key in _holders(tree, pattern):
            value = holder[key]
            if isinstance(value, str) and "://" not in value:
                holder[key] = _absolute(folder, value)
    tracking = tree.get("tracking")
    if isinstance(tracking, dict) and isinstance(uri := tracking.get("uri"), str):
        tracking["uri"] = _resolve_sqlite(uri, folder)


def _default_places(folder: Path) -> Tree:
    """Where an experiment in `folder` keeps what it makes unless it says so: the same from wherever it is called."""
    fields = Experiment.model_fields
    places: Tree = {
        "store": {"kind": "local", "path": str(LocalStore.model_fields["path"].default)},
        "state": fields["state"].default,
        "runs": str(fields["runs"].default),
    }
    _resolve(places, folder)
    return places


def _resolve_sqlite(uri: str, folder: Path) -> str:
    prefix = "sqlite:///"
    if not uri.startswith(prefix) or uri == prefix or uri.startswith(prefix + "/"):
        return uri
    return prefix + _absolute(folder, uri.removeprefix(prefix))


def _absolute(folder: Path, value: str) -> str:
    """`value` as meant from `folder`, without `..`; links are left as they are."""
    return os.path.abspath(folder / Path(value).expanduser())  # noqa: PTH100  resolve() would follow links


def _holders(tree: Any, pattern: Where) -> Iterator[tuple[Any, Any]]:
    """The containers and keys to which `pattern` leads, where they exist."""
    head, rest = pattern[0], pattern[1:]
    if head == "*":
        keys: list[Any] = list(range(len(tree)) if isinstance(tree, list) else _section(tree))
    else:
        keys = [head] if head in _section(tree) else []
    for key in keys:
        if rest:
            yield from _holders(tree[key], rest)
        else:
            yield tree, key


def _section(tree: Any) -> dict[Any, Any]:
    return tree if isinstance(tree, dict) else {}


def _merge(base: Any, top: Any) -> Any:
    """`top` over `base`: mappings merge key by key, but a section of another `kind` replaces; the rest replaces."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    if "kind" in top and "kind" in base and top["kind"] != base["kind"]:
        return top
    return {
        **base,
        **{key: _merge(base.get(key), value) if key in base else value for key, value in top.items()},
    }


# --- overrides -------------------------------------------------------------------------------------------


def _apply(tree: Tree, override: str, faults: list[str]) -> None:
    """Put one `a.b=value` into the tree; the value is YAML, and a relative path in it is meant from here."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    said = f"--set {name.strip()}"  # without the value, which may be a secret
    if not equals or not all(keys):
        faults.append(f"{said}: write section.key=value")
        return
    if keys[0] == "extends":
        faults.append(f"{said}: a file says itself what it extends")
        return
    try:
        value: Any = yaml.load(text, _Loader)  # noqa: S506  _Loader is a SafeLoader
    except yaml.YAMLError:
        value = text
    patch = _resolved(_expand(value, tuple(keys), faults), keys, Path.cwd())
    holder: Any = tree
    for i, key in enumerate(keys[:-1]):
        holder = _step(holder, key)
        if holder is None:
            faults.append(f"{said}: there is no {'.'.join(keys[: i + 1])}")
            return
    last: Any = keys[-1]
    if isinstance(holder, list):
        if not last.isdecimal() or int(last) >= len(holder):
            faults.append(f"{said}: there is no {name.strip()}")
            return
        last = int(last)
    elif not isinstance(holder, dict):
        faults.append(f"{said}: {'.'.join(keys[:-1])} is not a section")
        return
    if last == "kind" and isinstance(holder, dict) and holder.get("kind") not in (None, patch):
        holder.clear()  # another kind has other settings, as with `extends`
    holder[last] = patch


def _resolved(value: Any, keys: Sequence[str], folder: Path) -> Any:
    """The value of a setting, be it a whole section, with its relative places made absolute."""
    tree: Any = value
    for key in reversed(keys):
        tree = {key: tree}
    _resolve(tree, folder)
    for key in keys:
        tree = tree[key]
    return tree


def _step(holder: Any, key: str) -> Any:
    if isinstance(holder, list):
        return holder[int(key)] if key.isdecimal() and int(key) < len(holder) else None
    if isinstance(holder, dict):
        if holder.get(key) is None:
            holder[key] = {}
        return holder[key]
    return None


# --- faults ----------------------------------------------------------------------------------------------


def _fault(detail: ErrorDetails, tree: Tree) -> str:
    """One fault as a line: the dotted path, then what is wrong and what would be right."""
    where = _without_tags(detail["loc"], tree)
    path = f"{_dotted(where)}: " if where else ""
    match detail["type"]:
        case "extra_forbidden":
            known = _known_keys(detail["loc"][:-1])
            close = get_close_matches(str(where[-1]), known, n=1)
            meant = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"
            return f"{path}unknown key{meant if known else ''}"
        case "missing":
            return f"{path}required"
        case "union_tag_not_found":
            return f"{_dotted((*where, 'kind'))}: required"
        case "union_tag_invalid":
            context = detail.get("ctx", {})
            known_kinds = str(context.get("expected_tags", "")).replace("'", "")
            return f"{_dotted((*where, 'kind'))}: unknown kind {context.get('tag')!r}; known: {known_kinds}"
        case "value_error":
            return f"{path}{detail['msg'].removeprefix('Value error, ')}"
        case _:
            message = detail["msg"].replace("Input should", "must")
            return f"{path}{message[0].lower()}{message[1:]}"


def _without_tags(location: Where, tree: Any) -> Where:
    """Pydantic puts the kind of a section into the path; people do not write it there."""
    kept: list[str | int] = []
    for i, step in enumerate(location):
        last = i == len(location) - 1
        is_tag = isinstance(tree, dict) and tree.get("kind") == step and step not in tree and not last
        if is_tag:
            continue
        kept.append(step)
        if isinstance(tree, dict):
            tree = tree.get(step)
        elif isinstance(tree, list) and isinstance(step, int) and step < len(tree):
            tree = tree[step]
    return tuple(kept)


def _known_keys(location: Where) -> list[str]:
    """The settings of the section at `location` (with pydantic's tags in it)."""
    models: list[Any] = [Experiment]
    for step in location:
        models = [part for model in models for part in _parts(model, step)]
    return [name for model in models for name in model.model_fields]


def _parts(model: type[BaseModel], step: str | int) -> list[type[BaseModel]]:
    if isinstance(step, int):
        return [model]
    if step in model.model_fields:
        return list(_models_in(model.model_fields[step].annotation))
    kind = model.model_fields.get("kind")
    return [model] if kind is not None and step in getattr(kind.annotation, "__args__", ()) else []


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _dotted(where: Where) -> str:
    return ".".join(str(step) for step in where)


def _mask(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _mask_variables(item) if key == "env" else _mask(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask(item) for item in value]
    return _mask_url(value) if isinstance(value, str) and "://" in value else value


def _mask_variables(env: Any) -> Any:
    if not isinstance(env, Mapping):
        return _mask(env)
    return {name: HIDDEN if SECRET_VARIABLE.search(name) else _mask(value) for name, value in env.items()}


def _mask_url(url: str) -> str:
    """The address without its password, and without what its query says, in which a key or token may stand."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN  # no address: nobody can say what in it is secret
    netloc = parts.netloc
    if parts.password is not None:
        netloc = f"{parts.username}:{HIDDEN}@{netloc.rpartition('@')[2]}"
    entries = (entry.partition("=") for entry in parts.query.split("&"))
    query = "&".join(f"{name}={HIDDEN}" if given else name for name, given, _ in entries)
    shown = parts._replace(netloc=netloc, query=query)
    return url if shown == parts else urlunsplit(shown)
