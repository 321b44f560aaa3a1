"""The base of the test servers: threads, latency, injected faults, a log of calls, and a check of every reply.

A server derives from `LoopbackServer`, names its botocore services and gives a table operation -> method. A
method takes a `Request` and returns the output members as a dict (put onto the wire by the model), or a `Reply`
of its own making, or raises `Refusal`. Whatever is in neither table nor model is answered 501 and remembered
in `unexpected`; a reply that does not fit the model is answered 500 and remembered in `broken`. Tests assert
that both stay empty.
"""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qs

import orjson

from tests.servers.model_check import Match, check_error, check_reply, find_operation, operation_model

REPORT_PATH = "/_server/report"


@dataclass(frozen=True)
class Request:
    """One HTTP request, already matched to an operation."""

    match: Match
    query: Mapping[str, list[str]]
    headers: Message  # looked up without regard to case
    body: bytes

    @cached_property
    def document(self) -> dict[str, Any]:
        """The body as a JSON object; raises `Refusal` (SerializationException) when it is none."""
        try:
            value = orjson.loads(self.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise Refusal(400, "SerializationException", "Malformed request body") from error
        if not isinstance(value, dict):
            raise Refusal(400, "SerializationException", "Unexpected value type in payload")
        return value

    def sizes(self) -> dict[str, int]:
        """Return the length of each list, object and text at the top of a JSON body; empty for other bodies."""
        try:
            return {k: len(v) for k, v in self.document.items() if isinstance(v, list | dict | str)}
        except Refusal:
            return {}


@dataclass(frozen=True)
class Reply:
    """One HTTP response; a body of several pieces is sent chunked, each piece as soon as it is there."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error of the service: status, code, message, and further members of its JSON body."""

    def __init__(self, status: int, code: str, message: str, **members: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.members = status, code, message, members


@dataclass(frozen=True)
class Fault:
    """A fault to inject into calls of `operation` (None = any), after `skip` matching calls, `times` times.

    Kinds: "error" answers status/code; "reset" drops the connection before anything is done; "hang" says
    nothing for `seconds` and then drops it; "lost" does the work and drops the connection instead of replying.
    `times=None` never ends; `probability` is drawn per matching call from `seed`.
    """

    kind: Literal["error", "reset", "hang", "lost"]
    operation: str | None = None
    status: int = 503
    code: str = "ServiceUnavailableException"
    message: str = "Currently unable to handle the request"
    skip: int = 0
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    seconds: float = 60.0


class Faults:
    """The faults waiting to happen, and the log of (operation, kind) that did."""

    def __init__(self) -> None:
        self.injected: list[tuple[str, str]] = []
        self._rules: list[tuple[Fault, random.Random, Counter[str]]] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Add faults; for a call the first added that applies wins."""
        with self._lock:
            self._rules += [(fault, random.Random(fault.seed), Counter()) for fault in faults]

    def clear(self) -> None:
        """Forget all faults, keeping the log of those that happened."""
        with self._lock:
            self._rules.clear()

    def draw(self, operation: str) -> Fault | None:
        """Return the fault this call meets, counting it as used."""
        with self._lock:
            for fault, dice, count in self._rules:
                if fault.operation not in (None, operation):
                    continue
                count["seen"] += 1
                spent = fault.times is not None and count["used"] >= fault.times
                if count["seen"] > fault.skip and not spent and dice.random() < fault.probability:
                    count["used"] += 1
                    self.injected.append((operation, fault.kind))
                    return fault
        return None


@dataclass(frozen=True)
class Call:
    """One call the server received: when (monotonic seconds), how big, how answered (status 0 = no reply)."""

    operation: str
    at: float
    body_bytes: int
    sizes: Mapping[str, int]
    status: int


Handler = Callable[[Request], Mapping[str, Any] | Reply]


class LoopbackServer:
    """A threaded HTTP/1.1 server on 127.0.0.1 for one or more botocore services; use it in a with statement."""

    services: ClassVar[Sequence[str]]

    def __init__(self, *, port: int = 0, latency: Mapping[str, float] | None = None) -> None:
        """Bind the port (0 = a free one). `latency` is seconds by operation; the key "*" is for the others."""
        self.latency = dict(latency or {})
        self.faults = Faults()
        self.calls: list[Call] = []
        self.unexpected: list[str] = []
        self.broken: list[str] = []
        self.stopping = threading.Event()
        self._http = _HTTPServer(("127.0.0.1", port), self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods that answer, by operation name."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._http.drop_connections()
        self._thread.join()

    def calls_of(self, operation: str) -> list[Call]:
        """Return the calls of one operation, oldest first, those that met a fault included."""
        return [call for call in self.calls if call.operation == operation]

    def report(self) -> dict[str, Any]:
        """Return what happened so far as JSON; a server in its own process answers it at `REPORT_PATH`."""
        return {
            "calls": dict(Counter(call.operation for call in self.calls)),
            "largest_body": max((call.body_bytes for call in self.calls), default=0),
            "faults": len(self.faults.injected),
            "unexpected": self.unexpected,
            "broken": self.broken,
        }

    def respond(self, method: str, target: str, headers: Message, body: bytes) -> Reply | Literal["reset"]:
        """Answer one HTTP request, or say "reset" to drop its connection."""
        path, _, query = target.partition("?")
        if path == REPORT_PATH:
            return Reply(body=orjson.dumps(self.report()))
        match = self._find(method, path)
        if match is None or match.operation not in self.handlers():
            return self._unknown(method, path, match)
        request = Request(match, parse_qs(query, keep_blank_values=True), headers, body)
        at = time.monotonic()
        self.stopping.wait(self.latency.get(match.operation, self.latency.get("*", 0.0)))
        reply = self._answer_or_fault(request)
        status = reply.status if isinstance(reply, Reply) else 0
        self.calls.append(Call(match.operation, at, len(body), request.sizes(), status))
        return reply

    def _find(self, method: str, path: str) -> Match | None:
        matches = (find_operation(service, method, path) for service in self.services)
        return next((match for match in matches if match), None)

    def _unknown(self, method: str, path: str, match: Match | None) -> Reply:
        name = match.operation if match else f"{method} {path}"
        self.unexpected.append(name)
        return _error_reply(Refusal(501, "NotImplemented", f"{type(self).__name__} does not know {name}"))

    def _answer_or_fault(self, request: Request) -> Reply | Literal["reset"]:
        fault = self.faults.draw(request.match.operation)
        if fault is None:
            return self._answer(request)
        if fault.kind == "error":
            return _error_reply(Refusal(fault.status, fault.code, fault.message))
        if fault.kind == "lost":
            self._answer(request)
        if fault.kind == "hang":
            self.stopping.wait(fault.seconds)
        return "reset"

    def _answer(self, request: Request) -> Reply:
        service, operation = request.match.service, request.match.operation
        try:
            answer = self.handlers()[operation](request)
        except Refusal as refusal:
            document = {"message": refusal.message, **refusal.members}
            faults = check_error(service, refusal.code, document)
            return self._broken(operation, faults) if faults else _error_reply(refusal)
        except Exception as error:  # noqa: BLE001 - a bug of the server must be seen, not only lose a connection
            return self._broken(operation, [repr(error)])
        if isinstance(answer, Reply):
            return answer
        faults = check_reply(service, operation, answer)
        return self._broken(operation, faults) if faults else wire_reply(service, operation, answer)

    def _broken(self, operation: str, faults: Sequence[str]) -> Reply:
        message = f"{operation}: {'; '.join(faults)}"
        self.broken.append(message)
        return _error_reply(Refusal(500, "InternalServerException", f"bug in the test server: {message}"))


def wire_reply(service: str, operation: str, members: Mapping[str, Any]) -> Reply:
    """Put output members where the model wants them: headers, a payload, or the JSON body.

    numpy float arrays in the JSON body are written in the shortest form that reads back as the same float32.
    """
    shape = operation_model(service, operation).output_shape
    if shape is None:
        return Reply()
    payload = shape.serialization.get("payload")
    headers, document = {"Content-Type": "application/json"}, {}
    for name, value in members.items():
        serialization = shape.members[name].serialization
        if serialization.get("location") == "header":
            headers[serialization["name"]] = str(value)
        elif name != payload:
            document[serialization.get("name", name)] = value
    body = members.get(payload, b"") if payload else orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(body=body if isinstance(body, bytes) else orjson.dumps(body), headers=headers)


def _error_reply(refusal: Refusal) -> Reply:
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": refusal.code}
    return Reply(refusal.status, orjson.dumps({"message": refusal.message, **refusal.members}), headers)


class _HTTPServer(ThreadingHTTPServer):
    """The listening socket, which remembers its connections so that stopping leaves none behind."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address: tuple[str, int], owner: LoopbackServer) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        """Wake every thread that waits for a next request on a kept-alive connection."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the client may have left already
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what reaches here is a client that went away; bugs are caught in `_answer`."""


class _Connection(BaseHTTPRequestHandler):
    """One connection: reads requests, writes replies, each in as few packets as it can."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HTTPServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply = self.server.owner.respond(self.command, self.path, self.headers, body)
        if reply == "reset":
            self._reset()
        elif isinstance(reply.body, bytes):
            self._head(reply, {"Content-Length": str(len(reply.body))}, reply.body)
        else:
            self._head(reply, {"Transfer-Encoding": "chunked"}, b"")
            for piece in reply.body:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815 - names given by http.server

    def _head(self, reply: Reply, framing: Mapping[str, str], body: bytes) -> None:
        """Write status and headers together with the body, so that small replies are one packet."""
        self.send_response(reply.status)
        for name, value in {**reply.headers, **framing}.items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined] # not in the stubs, since 3.3
        self.flush_headers()

    def _reset(self) -> None:
        """Close so that the client sees a reset instead of an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parameter's inherited name
        """Keep quiet: `LoopbackServer.calls` is the log."""
