"""AWS event streams as bytes: messages with headers and checksums, each event checked against its shape."""

import struct
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import orjson

from tests.servers.model_check import operation_model, problems

CONTENT_TYPE = "application/vnd.amazon.eventstream"
_STRING = 7  # the header type for text


def message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message of the event stream encoding: prelude, its checksum, headers, payload, checksum of all."""
    head = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack("!II", len(head) + len(payload) + 16, len(head))
    body = prelude + struct.pack("!I", crc32(prelude)) + head + payload
    return body + struct.pack("!I", crc32(body))


def _header(name: str, value: str) -> bytes:
    raw = value.encode()
    return struct.pack(f"!B{len(name)}sBH", len(name), name.encode(), _STRING, len(raw)) + raw


def event(service: str, operation: str, name: str, value: Mapping[str, Any]) -> bytes:
    """An event or an exception of an operation's stream, as its model says; AssertionError when it does not fit."""
    shape = _events(service, operation).members[name]
    faults = [str(problem) for problem in problems(shape, value)]
    assert not faults, f"{operation} {name}: {'; '.join(faults)}"
    kind = "exception" if shape.metadata.get("exception") else "event"
    headers = {":message-type": kind, f":{kind}-type": name}
    payloads = [member for member, it in shape.members.items() if it.serialization.get("eventpayload")]
    if payloads:
        return message(headers | {":content-type": "application/octet-stream"}, value[payloads[0]])
    return message(headers | {":content-type": "application/json"}, orjson.dumps(value))


def _events(service: str, operation: str) -> Any:
    """The shape that holds the events of an operation's stream."""
    members = operation_model(service, operation).output_shape.members.values()
    return next(shape for shape in members if shape.serialization.get("eventstream"))
