"""Who one is and what one may do: GetCallerIdentity of STS, GetRole and SimulatePrincipalPolicy of IAM.

    with AccountServer(denied={"s3vectors:PutVectors"}) as server:
        client = boto3.client("iam", endpoint_url=server.url)

Both services name their operation in a form and answer in XML. The simulator denies what `denied` holds, for any
resource; every question that it was asked is in `asked`.
"""

from collections.abc import Callable, Collection, Mapping
from email.message import Message
from typing import Any, Literal
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from tests.servers.http import Handler, LoopbackServer, Refusal, Reply, Request
from tests.servers.model_check import Match, check_reply, service_model

ACCOUNT = "123456789012"
CALLER = f"arn:aws:sts::{ACCOUNT}:assumed-role/Runner/session"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/teams/search/Runner"

Form = Mapping[str, list[str]]


class AccountServer(LoopbackServer):
    """One caller of one account. `refuses`: operations that are answered with AccessDenied or an expired token."""

    services = ("sts", "iam")

    def __init__(
        self,
        *,
        caller: str = CALLER,
        denied: Collection[str] = (),
        refuses: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.caller = caller
        self.denied = set(denied)
        self.refuses = dict(refuses or {})
        self.asked: list[tuple[str, str, str]] = []  # principal, action, resource

    def handlers(self) -> Mapping[str, Handler]:
        """See `LoopbackServer`."""
        return {
            "GetCallerIdentity": self._answering(self._identity),
            "GetRole": self._answering(self._role),
            "SimulatePrincipalPolicy": self._answering(self._simulate),
        }

    def respond(self, method: str, target: str, headers: Message, body: bytes) -> Reply | Literal["reset"]:
        """See `LoopbackServer`; the operation stands in the form."""
        form = parse_qs(body.decode())
        return super().respond(method, f"/{form.get('Action', ['?'])[0]}", headers, body)

    def _find(self, method: str, path: str) -> Match | None:
        name = path.strip("/")
        service = next((one for one in self.services if name in service_model(one).operation_names), None)
        return Match(service, name, {}) if service else None

    def _answering(self, answer: Callable[[Form], Mapping[str, Any]]) -> Handler:
        def handle(request: Request) -> Reply:
            operation = request.match.operation
            code = self.refuses.get(operation)
            if code:
                status = 403 if code == "AccessDenied" else 400
                error = f"<Error><Code>{code}</Code><Message>not for you</Message></Error>"
                return Reply(status, f"<ErrorResponse>{error}</ErrorResponse>".encode())
            result = answer(parse_qs(request.body.decode()))
            faults = check_reply(request.match.service, operation, result)
            if faults:
                raise Refusal(500, "InternalFailure", "; ".join(faults))
            inner = f"<{operation}Result>{_xml(result)}</{operation}Result>"
            return Reply(body=f"<{operation}Response>{inner}</{operation}Response>".encode())

        return handle

    def _identity(self, _: Form) -> Mapping[str, Any]:
        return {"UserId": "AROAEXAMPLE", "Account": ACCOUNT, "Arn": self.caller}

    def _role(self, form: Form) -> Mapping[str, Any]:
        name = form["RoleName"][0]
        role = {"Path": "/teams/search/", "RoleName": name, "RoleId": "AROAEXAMPLE0000000", "Arn": ROLE}
        return {"Role": {**role, "CreateDate": 1_700_000_000}}

    def _simulate(self, form: Form) -> Mapping[str, Any]:
        principal, resource = form["PolicySourceArn"][0], form["ResourceArns.member.1"][0]
        actions = [value[0] for key, value in form.items() if key.startswith("ActionNames.member.")]
        self.asked += [(principal, action, resource) for action in actions]
        results = [
            {
                "EvalActionName": action,
                "EvalResourceName": resource,
                "EvalDecision": "implicitDeny" if action in self.denied else "allowed",
            }
            for action in actions
        ]
        return {"EvaluationResults": results, "IsTruncated": False}


def _xml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(f"<{name}>{_xml(item)}</{name}>" for name, item in value.items())
    if isinstance(value, list):
        return "".join(f"<member>{_xml(item)}</member>" for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return escape(str(value))
