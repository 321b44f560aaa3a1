"""What stands between ragctl and an S3 server, and loses answers.

    with S3Front("http://127.0.0.1:5000", loses={"lease.json"}) as front:
        client = boto3.client("s3", endpoint_url=front.url)

The server gets every request. What it answers to the first attempt at writing a file whose name is in `loses` is lost:
the connection breaks, and the SDK tries once more. Writes of the files in `busy` are answered with 409 so many times,
and are not done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from email.message import Message
from http.client import HTTPConnection
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.servers.http import Handler, LoopbackServer, Reply

FRAMING = frozenset({"content-length", "transfer-encoding", "connection"})
CONFLICT = (
    b"<Error><Code>ConditionalRequestConflict</Code><Message>a write at the same time</Message></Error>"
)


class S3Front(LoopbackServer):
    """See the module; `lost` counts the answers that were, by the name of the file."""

    services = ()

    def __init__(self, behind: str, *, loses: Collection[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.loses = set(loses)
        self.busy: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._behind = urlsplit(behind).netloc

    def handlers(self) -> Mapping[str, Handler]:
        """See `LoopbackServer`: it answers nothing by itself."""
        return {}

    def respond(self, method: str, target: str, headers: Message, body: bytes) -> Reply | Literal["reset"]:
        """See `LoopbackServer`."""
        name = target.partition("?")[0].rpartition("/")[2]
        if method == "PUT" and self.busy[name] > 0:
            self.busy[name] -= 1
            return Reply(409, CONFLICT)
        reply = self._forward(method, target, headers, body)
        if method == "PUT" and name in self.loses and headers["amz-sdk-request"].startswith("attempt=1"):
            self.lost[name] += 1
            return "reset"
        return reply

    def _forward(self, method: str, target: str, headers: Message, body: bytes) -> Reply:
        connection = HTTPConnection(self._behind)
        try:
            sent = {key: value for key, value in headers.items() if key.lower() not in {*FRAMING, "expect"}}
            connection.request(method, target, body, sent)
            answer = connection.getresponse()
            kept = {key: value for key, value in answer.getheaders() if key.lower() not in FRAMING}
            return Reply(answer.status, answer.read(), kept)
        finally:
            connection.close()
