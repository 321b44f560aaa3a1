"""The control plane of SageMaker in memory, with what a deployment asks beside it.

    with SageMakerServer(fates={"writer": Fate("Failed", reason="no capacity")}) as server:
        client = boto3.client("sagemaker", endpoint_url=server.url)

or, as a process of its own, `python -m tests.servers.sagemaker --port 0`, which prints its URL first. One server
stands for sagemaker, service-quotas, pricing, resourcegroupstaggingapi, application-autoscaling and cloudwatch;
the endpoints themselves answer at tests/servers/sagemaker_runtime.py. There is no clock: an endpoint comes on by
one state each time somebody looks at it.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tests.servers.autoscaling import Operation, Scaling
from tests.servers.aws_json import AwsJsonServer, refusing
from tests.servers.http import Handler, Refusal, Request
from tests.servers.model_check import check_request
from tests.servers.process import run_until_told
from tests.servers.sagemaker_things import ARN_TYPES, KINDS, STATUS, Fate, Thing, arn_of

SAGEMAKER = "sagemaker"


class SageMakerServer(AwsJsonServer):
    """One account in one region."""

    services = (
        SAGEMAKER,
        "service-quotas",
        "pricing",
        "resourcegroupstaggingapi",
        "application-autoscaling",
        "cloudwatch",
    )

    def __init__(
        self,
        *,
        fates: Mapping[str, Fate] | None = None,
        quotas: Mapping[str, int] | None = None,
        prices: Mapping[str, float] | None = None,
        page: int = 2,
        **options: Any,
    ) -> None:
        """`fates` are by a part of the name; `quotas` (of endpoint instances) and `prices` (USD an hour) by type."""
        super().__init__(**options)
        self.fates = dict(fates or {})
        self.quotas = dict(quotas or {})
        self.limits: dict[str, int] = {}  # instances that CreateEndpoint allows, whatever the quotas say
        self.prices = dict(prices or {})
        self.page = page
        self.unseen = 0  # calls of CreateEndpoint that do not see the new config yet
        self.tagged_late: set[str] = set()  # ARNs that the tagging API names though they are gone
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.wrong_order: list[str] = []  # what was removed while something that exists uses it
        # (type, name) of what a private hub holds -> its document, as JSON; one version each
        self.hub: dict[tuple[str, str], dict[str, Any]] = {}
        self.scaling = Scaling(self._need_scaled)
        self.after_call: Callable[[str], None] = lambda _: None
        self._things: dict[tuple[str, str], Thing] = {}
        self._lock = threading.RLock()

    def existing(self) -> list[str]:
        """All that exists, as "endpoint/name", scaling and alarms included."""
        with self._lock:
            things = [f"{ARN_TYPES[t.kind]}/{t.name}" for t in self._things.values() if not t.is_gone]
            return sorted([*things, *self.scaling.existing()])

    def thing(self, path: str) -> Thing:
        """What `existing` names so."""
        kind, _, name = path.partition("/")
        return self._things[next(k for k, v in ARN_TYPES.items() if v == kind), name]

    def report(self) -> dict[str, Any]:
        """See `LoopbackServer`."""
        return {**super().report(), "existing": self.existing(), "wrong_order": self.wrong_order}

    def handlers(self) -> Mapping[str, Handler]:
        """See `LoopbackServer`."""
        table: dict[str, Operation] = {
            "AddTags": self._add_tags,
            "DeleteTags": self._delete_tags,
            "ListTags": self._list_tags,
            "UpdateEndpoint": self._update_endpoint,
            "DescribeHubContent": self._hub_content,
            "ListHubContentVersions": self._hub_versions,
            "ListServiceQuotas": self._list_quotas,
            "GetProducts": self._products,
            "GetResources": self._resources,
            **self.scaling.operations(),
        }
        for kind in KINDS:
            table[f"Create{kind}"] = partial(self._create, kind)
            table[f"Describe{kind}"] = partial(self._describe, kind)
            table[f"Delete{kind}"] = partial(self._delete, kind)
            table[f"List{kind}s"] = partial(self._list, kind)
        return {name: partial(refusing, partial(self._checked, handler)) for name, handler in table.items()}

    def _checked(self, handler: Operation, request: Request) -> Mapping[str, Any]:
        faults = check_request(request.match.service, request.match.operation, request.document)
        if faults:
            raise Refusal(400, "ValidationException", f"1 validation error detected: {faults[0]}")
        try:
            with self._lock:
                self.requests.append((request.match.operation, request.document))
                return handler(request.document)
        finally:
            self.after_call(request.match.operation)

    # --- create, describe, list, delete ---

    def _create(self, kind: str, request: dict[str, Any]) -> Mapping[str, Any]:
        name_member, arn_member, _, words = KINDS[kind]
        name = request[name_member]
        tags = {tag["Key"]: tag["Value"] for tag in request.pop("Tags", [])}
        thing = Thing(kind, name, request, tags, time.time())
        self._purge()
        if (kind, name) in self._things:
            raise _invalid(f'Cannot create already existing {words} "{thing.arn}".')
        {
            "Model": self._check_model,
            "EndpointConfig": self._check_config,
            "Endpoint": self._check_endpoint,
            "InferenceComponent": self._check_component,
        }[kind](request)
        if kind in STATUS:
            thing.status = "Creating"
            thing.fate = next((fate for part, fate in self.fates.items() if part in name), Fate())
        self._things[kind, name] = thing
        return {arn_member: thing.arn}

    def _check_model(self, request: dict[str, Any]) -> None:
        source = request["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]
        gated = source["S3Uri"].startswith("s3://jumpstart-private-cache")
        if gated and not source.get("ModelAccessConfig", {}).get("AcceptEula"):
            raise _invalid("The model requires that its end-user license agreement is accepted.")

    def _check_config(self, request: dict[str, Any]) -> None:
        for variant in request["ProductionVariants"]:
            if "ModelName" in variant:
                self._need("Model", variant["ModelName"])
            elif "ExecutionRoleArn" not in request:
                raise _invalid("An execution role is needed for an endpoint of inference components.")

    def _check_endpoint(self, request: dict[str, Any]) -> None:
        if self.unseen:
            self.unseen -= 1
            raise _not_found("EndpointConfig", request["EndpointConfigName"])
        config = self._need("EndpointConfig", request["EndpointConfigName"])
        for variant in config.request["ProductionVariants"]:
            kind, count = variant["InstanceType"], variant["InitialInstanceCount"]
            limit = self.limits.get(kind)
            if limit is not None and count > limit:
                raise Refusal(
                    400,
                    "ResourceLimitExceeded",
                    f"The account-level service limit '{kind} for endpoint usage' is {limit} Instances, with current "
                    f"utilization of 0 Instances and a request delta of {count} Instances.",
                )

    def _check_component(self, request: dict[str, Any]) -> None:
        endpoint = self._need("Endpoint", request["EndpointName"])
        if endpoint.status != "InService":
            raise _invalid(f'Endpoint "{endpoint.arn}" is not in service.')
        self._need("Model", request["Specification"]["ModelName"])

    def _need(self, kind: str, name: str) -> Thing:
        self._purge()
        if (kind, name) not in self._things:
            raise _not_found(kind, name)
        return self._things[kind, name]

    def _purge(self) -> None:
        for key in [key for key, thing in self._things.items() if thing.is_gone]:
            del self._things[key]

    def _describe(self, kind: str, request: dict[str, Any]) -> Mapping[str, Any]:
        name_member, arn_member, _, _ = KINDS[kind]
        thing = self._need(kind, request[name_member])
        thing.look()
        thing = self._need(kind, request[name_member])
        answer = {arn_member: thing.arn, "CreationTime": thing.created, **thing.request}
        if kind in STATUS:
            answer |= {STATUS[kind]: thing.status, "LastModifiedTime": thing.created}
            if thing.reason:
                answer["FailureReason"] = thing.reason
        if thing.next_config:
            answer["PendingDeploymentSummary"] = {"EndpointConfigName": thing.next_config}
        if kind == "Endpoint" and thing.status not in ("Creating", "Failed"):  # then it has none yet
            answer["ProductionVariants"] = self._variants_of(thing)
        if kind == "InferenceComponent":
            answer["EndpointArn"] = arn_of("Endpoint", thing.request["EndpointName"])
            answer["RuntimeConfig"] = {"DesiredCopyCount": 1, "CurrentCopyCount": 1}
        return answer

    def _variants_of(self, endpoint: Thing) -> list[dict[str, Any]]:
        """Those of its config, each with as many instances as it was made with or as `Thing.counts` says."""
        config = self._things.get(("EndpointConfig", endpoint.request["EndpointConfigName"]))
        rows = []
        for variant in config.request["ProductionVariants"] if config else ():
            name, initial = variant["VariantName"], variant.get("InitialInstanceCount", 0)
            current, desired = endpoint.counts.get(name, (initial, initial))
            rows.append(
                {"VariantName": name, "CurrentInstanceCount": current, "DesiredInstanceCount": desired}
            )
        return rows

    def _list(self, kind: str, request: dict[str, Any]) -> Mapping[str, Any]:
        name_member, arn_member, list_member, _ = KINDS[kind]
        self._purge()
        rows = []
        for thing in self._of_kind(kind):
            if request.get("NameContains", "") in thing.name:
                row: dict[str, Any] = {
                    name_member: thing.name,
                    arn_member: thing.arn,
                    "CreationTime": thing.created,
                }
                if kind in STATUS:
                    row |= {STATUS[kind]: thing.status, "LastModifiedTime": thing.created}
                if kind == "InferenceComponent":
                    endpoint = thing.request["EndpointName"]
                    row |= {
                        "EndpointName": endpoint,
                        "EndpointArn": arn_of("Endpoint", endpoint),
                        "VariantName": thing.request["VariantName"],
                    }
                rows.append(row)
        return self._paged(rows, list_member, request)

    def _of_kind(self, kind: str) -> Iterator[Thing]:
        return (thing for (found, _), thing in sorted(self._things.items()) if found == kind)

    def _paged(
        self, rows: list[Any], member: str, request: Mapping[str, Any], token: str = "NextToken"
    ) -> dict[str, Any]:
        start = int(request.get(token) or 0)
        more = {token: str(start + self.page)} if start + self.page < len(rows) else {}
        return {member: rows[start : start + self.page], **more}

    def _delete(self, kind: str, request: dict[str, Any]) -> Mapping[str, Any]:
        name_member, _, _, words = KINDS[kind]
        thing = self._need(kind, request[name_member])
        self._note_order(thing)
        if kind not in STATUS:
            del self._things[kind, thing.name]
            return {}
        busy = thing.status in ("Creating", "Updating")
        if busy and (not thing.fate.deletable or thing.status == "Updating"):
            raise _invalid(f'Cannot update in-progress {words} "{thing.arn}".')
        if thing.status != "Deleting":
            thing.status, thing.looks = "Deleting", 0
        return {}

    def _note_order(self, thing: Thing) -> None:
        for other in self._things.values():
            uses = [other.request.get("EndpointConfigName"), other.next_config]
            uses += [v.get("ModelName") for v in other.request.get("ProductionVariants", [])]
            uses += [other.request.get("Specification", {}).get("ModelName")]
            uses += [other.request.get("EndpointName")] if other.kind == "InferenceComponent" else []
            if other is not thing and thing.name in uses and (other.kind, thing.kind) in _USERS:
                self.wrong_order.append(f"{thing.kind} {thing.name} before {other.kind} {other.name}")

    def _update_endpoint(self, request: dict[str, Any]) -> Mapping[str, Any]:
        thing = self._need("Endpoint", request["EndpointName"])
        self._need("EndpointConfig", request["EndpointConfigName"])
        if thing.status != "InService":
            raise _invalid(f'Cannot update in-progress endpoint "{thing.arn}".')
        thing.status, thing.looks, thing.next_config = "Updating", 0, request["EndpointConfigName"]
        return {"EndpointArn": thing.arn}

    # --- tags ---

    def _by_arn(self, arn: str) -> Thing:
        self._purge()
        for thing in self._things.values():
            if thing.arn == arn:
                return thing
        raise _invalid(f"Could not find resource {arn}.")

    def _add_tags(self, request: dict[str, Any]) -> Mapping[str, Any]:
        thing = self._by_arn(request["ResourceArn"])
        thing.tags |= {tag["Key"]: tag["Value"] for tag in request["Tags"]}
        return {"Tags": _tag_list(thing.tags)}

    def _delete_tags(self, request: dict[str, Any]) -> Mapping[str, Any]:
        thing = self._by_arn(request["ResourceArn"])
        for key in request["TagKeys"]:
            thing.tags.pop(key, None)
        return {}

    def _list_tags(self, request: dict[str, Any]) -> Mapping[str, Any]:
        return self._paged(_tag_list(self._by_arn(request["ResourceArn"]).tags), "Tags", request)

    def _resources(self, request: dict[str, Any]) -> Mapping[str, Any]:
        wanted = {f["Key"]: set(f.get("Values", [])) for f in request.get("TagFilters", [])}
        types = {f"sagemaker:{ARN_TYPES[kind]}": kind for kind in KINDS}
        kinds = {types[name] for name in request["ResourceTypeFilters"]}
        rows = [
            {"ResourceARN": thing.arn, "Tags": _tag_list(thing.tags)}
            for thing in self._things.values()
            if thing.kind in kinds
            and all(key in thing.tags and (not v or thing.tags[key] in v) for key, v in wanted.items())
        ]
        rows += [{"ResourceARN": arn, "Tags": []} for arn in sorted(self.tagged_late)]
        return self._paged(rows, "ResourceTagMappingList", request, "PaginationToken")

    # --- hub, quotas and prices ---

    def _hub_content(self, request: dict[str, Any]) -> Mapping[str, Any]:
        row = self._hub_row(request)
        hub = request["HubName"].rpartition("/")[2]
        return {
            **row,
            "HubName": hub,
            "HubArn": row["HubContentArn"].partition(":hub-content")[0] + f":hub/{hub}",
            "HubContentDocument": json.dumps(self.hub[row["HubContentType"], row["HubContentName"]]),
        }

    def _hub_versions(self, request: dict[str, Any]) -> Mapping[str, Any]:
        return {"HubContentSummaries": [self._hub_row(request)]}

    def _hub_row(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What a hub says of its content; all of it is in version 1.0.0."""
        kind, name, hub = (request[member] for member in ("HubContentType", "HubContentName", "HubName"))
        if (kind, name) not in self.hub:
            raise Refusal(400, "ResourceNotFound", f"Hub content {name} of type {kind} does not exist.")
        path = f"hub-content/{hub.rpartition('/')[2]}/{kind}/{name}/1.0.0"
        return {
            "HubContentName": name,
            "HubContentArn": f"{arn_of('Model', '').removesuffix('model/')}{path}",
            "HubContentVersion": "1.0.0",
            "HubContentType": kind,
            "DocumentSchemaVersion": "2.3.0",
            "HubContentStatus": "Available",
            "CreationTime": 1.0,
        }

    def _list_quotas(self, request: dict[str, Any]) -> Mapping[str, Any]:
        rows = [
            {"ServiceCode": "sagemaker", "QuotaName": f"{kind} for {use}", "Value": float(value)}
            for kind, count in sorted(self.quotas.items())
            for use, value in (("endpoint usage", count), ("processing job usage", 7))
        ]
        return self._paged(rows, "Quotas", request)

    def _products(self, request: dict[str, Any]) -> Mapping[str, Any]:
        asked = {f["Field"]: f["Value"] for f in request["Filters"]}
        assert asked["platoinstancetype"] == "Hosting", asked
        rows = [
            json.dumps(
                {
                    "product": {"attributes": {"instanceName": kind, "regionCode": asked["regionCode"]}},
                    "terms": {
                        "OnDemand": {
                            "A.B": {
                                "priceDimensions": {
                                    "A.B.C": {"unit": "Hrs", "pricePerUnit": {"USD": f"{usd:.10f}"}}
                                }
                            }
                        }
                    },
                }
            )
            for kind, usd in sorted(self.prices.items())
        ]
        return {"FormatVersion": "aws_v1", **self._paged(rows, "PriceList", request)}

    def _need_scaled(self, resource: str) -> Thing:
        kind, name = resource.split("/")[:2]
        return self._need("Endpoint" if kind == "endpoint" else "InferenceComponent", name)


_USERS = {
    ("EndpointConfig", "Model"),
    ("Endpoint", "EndpointConfig"),
    ("InferenceComponent", "Model"),
    ("InferenceComponent", "Endpoint"),
}


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _invalid(message: str) -> Refusal:
    return Refusal(400, "ValidationException", message)


def _not_found(kind: str, name: str) -> Refusal:
    words = KINDS[kind][3]
    return _invalid(f'Could not find {words} "{arn_of(kind, name)}".')


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    run_until_told(SageMakerServer(port=parser.parse_args().port))


if __name__ == "__main__":
    main()
