"""The base of test servers for services that name their operation in a header (JSON 1.1) or speak CBOR by RPC.

Requests are handed to `LoopbackServer` as JSON, whatever they came as, and its replies go back the way the request
came: with the error's name in the body, where these protocols want it, and as CBOR to who spoke CBOR.
"""

import struct
from collections.abc import Mapping
from email.message import Message
from typing import Any, Literal

import orjson
from botocore.parsers import RpcV2CBORParser

from tests.servers.http import REPORT_PATH, Handler, LoopbackServer, Refusal, Reply, Request
from tests.servers.model_check import Match, check_error, service_model

CBOR = "application/cbor"


class AwsJsonServer(LoopbackServer):
    """A server whose `services` speak JSON 1.1 or RPC with CBOR."""

    def respond(self, method: str, target: str, headers: Message, body: bytes) -> Reply | Literal["reset"]:
        """See `LoopbackServer`."""
        if target == REPORT_PATH:
            return super().respond(method, target, headers, body)
        is_cbor = headers.get("smithy-protocol") == "rpc-v2-cbor"
        named = target.removeprefix("/service/") if is_cbor else headers.get("X-Amz-Target", "")
        prefix, _, operation = named.replace("/operation/", ".").partition(".")
        content = orjson.dumps(from_cbor(body) if body else {}) if is_cbor else body
        reply = super().respond(method, f"/{prefix}/{operation}", headers, content)
        return reply if reply == "reset" else _dressed(reply, is_cbor=is_cbor)

    def _find(self, method: str, path: str) -> Match | None:
        _, prefix, operation = path.split("/")
        for service in self.services:
            model = service_model(service)
            if model.metadata["targetPrefix"] == prefix and operation in model.operation_names:
                return Match(service, operation, {})
        return None


def _dressed(reply: Reply, *, is_cbor: bool) -> Reply:
    document = orjson.loads(bytes_of(reply) or b"{}")
    code = reply.headers.get("x-amzn-ErrorType")
    if code:
        document["__type"] = code
    if is_cbor:
        return Reply(
            reply.status, to_cbor(document), {"Content-Type": CBOR, "smithy-protocol": "rpc-v2-cbor"}
        )
    return Reply(reply.status, orjson.dumps(document), {"Content-Type": "application/x-amz-json-1.1"})


def refusing(handler: Handler, request: Request) -> Mapping[str, Any] | Reply:
    """Answer, and write refusals with the member names of the service: some say "message", some "Message"."""
    try:
        return handler(request)
    except Refusal as refusal:
        model = service_model(request.match.service)
        members = model.shape_for(refusal.code).members if refusal.code in model.shape_names else {}
        document = {"Message" if "Message" in members else "message": refusal.message, **refusal.members}
        faults = check_error(request.match.service, refusal.code, document)
        assert not faults, faults
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": refusal.code}
        return Reply(refusal.status, orjson.dumps(document), headers)


def bytes_of(reply: Reply) -> bytes:
    """The body of a reply that is in one piece."""
    assert isinstance(reply.body, bytes)
    return reply.body


def from_cbor(data: bytes) -> Any:
    """The document in CBOR, read by botocore's own parser."""
    parser = RpcV2CBORParser()
    return parser.parse_data_item(parser.get_peekable_stream_from_bytes(data))


def to_cbor(value: Any) -> bytes:
    """JSON's values as CBOR (RFC 8949)."""
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[value]
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return _head(3, len(text)) + text
    if isinstance(value, Mapping):
        return _head(5, len(value)) + b"".join(to_cbor(k) + to_cbor(v) for k, v in value.items())
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(to_cbor, value))
    raise TypeError(f"JSON has no {type(value).__name__}")


def _head(major: int, number: int) -> bytes:
    """The first bytes of an item: its kind, and its value or length in the smallest form."""
    if number < 24:
        return bytes([major << 5 | number])
    for extra, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 256**size:
            return bytes([major << 5 | extra]) + number.to_bytes(size, "big")
    raise OverflowError(number)
