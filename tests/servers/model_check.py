"""What botocore's own service models say: which operation a path is, and whether a document fits its shape.

boto3 checks neither the maxima, patterns and enums of what it sends nor anything of what it receives, so the
test servers do both here, against the model that ships with botocore.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape

# How REST-JSON writes the floats that JSON has no words for.
NON_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})


@dataclass(frozen=True)
class Problem:
    """One place where a document does not fit its shape."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path or 'document'}: {self.message}"


@dataclass(frozen=True)
class Match:
    """The operation a request line names, with the decoded labels of its path."""

    service: str
    operation: str
    labels: Mapping[str, str]


@lru_cache
def service_model(service: str) -> ServiceModel:
    """Return botocore's model of a service, such as "s3vectors" or "bedrock-runtime"."""
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


def operation_model(service: str, operation: str) -> OperationModel:
    """Return botocore's model of one operation."""
    return service_model(service).operation_model(operation)


def find_operation(service: str, method: str, path: str) -> Match | None:
    """Return the REST operation that a method and a still-encoded path (no query string) name, or None."""
    for operation, verb, pattern in _routes(service):
        found = pattern.fullmatch(path) if verb == method else None
        if found:
            labels = {name: unquote(value) for name, value in found.groupdict().items()}
            return Match(service, operation, labels)
    return None


def check_reply(service: str, operation: str, reply: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a reply by the operation's output shape; an empty list means nothing.

    `reply` holds the output members by name as they go onto the wire: timestamps as epoch seconds, payload
    blobs as bytes, and events left unchecked (check each with `problems`).
    """
    shape = operation_model(service, operation).output_shape
    if shape is None:
        return ["document: the operation has no output"] if reply else []
    return [str(problem) for problem in problems(shape, reply)]


def check_error(service: str, code: str, document: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an error's body; an error the model does not declare is not checked."""
    model = service_model(service)
    if code not in model.shape_names:
        return []
    return [str(problem) for problem in problems(model.shape_for(code), document)]


def check_request(service: str, operation: str, document: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a request by the operation's input shape, maxima, patterns and enums included.

    `document` holds the input members by name, those from the path and the query string included.
    """
    shape = operation_model(service, operation).input_shape
    return list(problems(shape, document)) if shape is not None else []


def problems(shape: Shape, value: Any, path: str = "") -> Iterator[Problem]:
    """Yield every place where `value` does not fit `shape`; see `check_reply` for the representation."""
    if shape.metadata.get("document") or shape.metadata.get("eventstream"):
        return
    check = _CHECKS.get(shape.type_name)
    if check is None:
        raise NotImplementedError(f"no check for the type {shape.type_name} of {shape.name}")
    yield from check(shape, value, path)


def _structure(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path, f"must be an object, not {type(value).__name__}")
        return
    prefix = f"{path}." if path else ""
    for name in shape.required_members:
        if name not in value:
            yield Problem(prefix + name, "is required")
    if shape.metadata.get("union") and len(value) != 1:
        yield Problem(path, f"must have exactly one member, has {len(value)}")
    for name, member in value.items():
        if name in shape.members:
            yield from problems(shape.members[name], member, prefix + name)
        else:
            yield Problem(prefix + name, f"is not a member of {shape.name}")


def _list(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if _is_float_array(value) or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        yield from _bounds(shape, len(value), path, "elements")
        if not _plain_numbers(shape.member, value):
            for number, element in enumerate(value):
                yield from problems(shape.member, element, f"{path}[{number}]")
    else:
        yield Problem(path, f"must be a list, not {type(value).__name__}")


def _plain_numbers(member: Shape, value: Any) -> bool:
    """Say whether a list is known to be good floats, so that a vector is not walked number by number."""
    if member.type_name not in ("float", "double") or member.metadata:
        return False
    return _is_float_array(value) or set(map(type, value)) <= {float, int}


def _is_float_array(value: Any) -> bool:
    """Say whether this is a one-dimensional numpy array of floats, without importing numpy for it."""
    return getattr(getattr(value, "dtype", None), "kind", "") == "f" and value.ndim == 1


def _map(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path, f"must be an object, not {type(value).__name__}")
        return
    yield from _bounds(shape, len(value), path, "entries")
    for name, member in value.items():
        yield from problems(shape.key, name, f"{path}.{name}")
        yield from problems(shape.value, member, f"{path}.{name}")


def _string(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield Problem(path, f"must be a string, not {type(value).__name__}")
        return
    yield from _bounds(shape, len(value), path, "characters")
    if shape.enum and value not in shape.enum:
        yield Problem(path, f"must be one of {', '.join(shape.enum)}")
    pattern = shape.metadata.get("pattern")
    # Unicode classes such as \p{L} and surrogate pairs are beyond the standard library's expressions: left to the
    # server itself.
    beyond = pattern is None or "\\p{" in pattern or "\\uD800" in pattern
    if not beyond and not re.fullmatch(pattern, value):
        yield Problem(path, f"must match {pattern}")


def _integer(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield from _bounds(shape, value, path, "")
    else:
        yield Problem(path, f"must be an integer, not {type(value).__name__}")


def _float(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from _bounds(shape, value, path, "")
    elif not (isinstance(value, str) and value in NON_FINITE):
        yield Problem(path, f"must be a number, not {type(value).__name__}")


def _boolean(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, bool):
        yield Problem(path, f"must be a boolean, not {type(value).__name__}")


def _blob(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, bytes | str):
        yield Problem(path, f"must be bytes or base64 text, not {type(value).__name__}")


def _timestamp(shape: Any, value: Any, path: str) -> Iterator[Problem]:
    if isinstance(value, bool) or not isinstance(value, int | float | str | datetime):
        yield Problem(path, f"must be a time, not {type(value).__name__}")


def _bounds(shape: Shape, size: float, path: str, unit: str) -> Iterator[Problem]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        yield Problem(path, f"must be at least {low} {unit}".rstrip())
    if high is not None and size > high:
        yield Problem(path, f"must be at most {high} {unit}".rstrip())


_CHECKS = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "string": _string,
    "character": _string,
    "integer": _integer,
    "long": _integer,
    "float": _float,
    "double": _float,
    "boolean": _boolean,
    "blob": _blob,
    "timestamp": _timestamp,
}


@lru_cache
def _routes(service: str) -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    """Return (operation, method, pattern) of a service, literal paths before paths with labels."""
    model = service_model(service)
    rows = []
    for name in model.operation_names:
        http = model.operation_model(name).http
        template = http["requestUri"].partition("?")[0]
        rows.append((name, http["method"], template))
    rows.sort(key=lambda row: row[2].count("{"))
    return tuple((name, method, _pattern(template)) for name, method, template in rows)


def _pattern(template: str) -> re.Pattern[str]:
    """Turn `/endpoints/{Name}/invocations` into an expression; `{name+}` takes slashes too."""
    parts = re.split(r"\{(\w+)(\+?)\}", template)
    text = re.escape(parts[0])
    for label, greedy, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text += f"(?P<{label}>{'.+' if greedy else '[^/]+'}){re.escape(literal)}"
    return re.compile(text)
