"""Application Auto Scaling, CloudWatch alarms and one metric in memory, as far as endpoints need them.

A part of the server in tests/servers/sagemaker.py, which says what exists to be scaled.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tests.servers.http import Refusal

ACCOUNT, REGION = "123456789012", "eu-west-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/R"
Operation = Callable[[dict[str, Any]], Mapping[str, Any]]


class Scaling:
    """Targets by resource id, policies by resource id and name, alarms by name."""

    def __init__(self, need: Callable[[str], object]) -> None:
        """`need` is asked for the resource of a new target; it raises `Refusal` where there is none."""
        self.targets: dict[str, dict[str, Any]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}
        self.alarms: dict[str, dict[str, Any]] = {}
        # "endpoint/variant" -> epoch seconds -> calls in the hour
        self.invocations: dict[str, dict[float, float]] = {}
        self._need = need

    def existing(self) -> list[str]:
        """Targets and alarms, as "scaling/name" and "alarm/name"."""
        return [*(f"scaling/{name}" for name in self.targets), *(f"alarm/{name}" for name in self.alarms)]

    def operations(self) -> dict[str, Operation]:
        """What it answers, by operation."""
        return {
            "RegisterScalableTarget": self._register,
            "PutScalingPolicy": self._put_policy,
            "DescribeScalableTargets": self._describe_targets,
            "DescribeScalingPolicies": self._describe_policies,
            "DeregisterScalableTarget": self._deregister,
            "PutMetricAlarm": self._put_alarm,
            "DescribeAlarms": self._describe_alarms,
            "DeleteAlarms": self._delete_alarms,
            "GetMetricStatistics": self._invocations,
        }

    def _register(self, request: dict[str, Any]) -> Mapping[str, Any]:
        self._need(request["ResourceId"])
        if request["ResourceId"].startswith("endpoint/") and request.get("MinCapacity") == 0:
            raise Refusal(400, "ValidationException", "MinCapacity of a variant must be at least 1")
        self.targets[request["ResourceId"]] = request
        return {
            "ScalableTargetARN": f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/0a1b"
        }

    def _put_policy(self, request: dict[str, Any]) -> Mapping[str, Any]:
        self._need_target(request["ResourceId"])
        self.policies[request["ResourceId"], request["PolicyName"]] = request
        resource, policy = request["ResourceId"], request["PolicyName"]
        return {
            "PolicyARN": f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:1:resource/sagemaker/{resource}:"
            f"policyName/{policy}",
            "Alarms": [],
        }

    def _need_target(self, resource: str) -> None:
        if resource not in self.targets:
            raise Refusal(
                400, "ObjectNotFoundException", f"No scalable target registered for resource ID: {resource}"
            )

    def _describe_targets(self, request: dict[str, Any]) -> Mapping[str, Any]:
        role = (
            f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/R"
        )
        rows = [
            {
                **{k: v for k, v in self.targets[name].items() if k != "Tags"},
                "RoleARN": role,
                "CreationTime": 1.0,
            }
            for name in request.get("ResourceIds", sorted(self.targets))
            if name in self.targets
        ]
        return {"ScalableTargets": rows}

    def _describe_policies(self, request: dict[str, Any]) -> Mapping[str, Any]:
        rows = [
            {**policy, "PolicyARN": f"arn:aws:autoscaling:::{name}", "CreationTime": 1.0}
            for (resource, name), policy in sorted(self.policies.items())
            if resource == request.get("ResourceId", resource)
        ]
        return {"ScalingPolicies": rows}

    def _deregister(self, request: dict[str, Any]) -> Mapping[str, Any]:
        self._need_target(request["ResourceId"])
        del self.targets[request["ResourceId"]]
        for key in [key for key in self.policies if key[0] == request["ResourceId"]]:
            del self.policies[key]
        return {}

    def _put_alarm(self, request: dict[str, Any]) -> Mapping[str, Any]:
        self.alarms[request["AlarmName"]] = request
        return {}

    def _describe_alarms(self, request: dict[str, Any]) -> Mapping[str, Any]:
        names = request.get("AlarmNames", sorted(self.alarms))
        return {"MetricAlarms": [{"AlarmName": name} for name in names if name in self.alarms]}

    def _invocations(self, request: dict[str, Any]) -> Mapping[str, Any]:
        assert (request["Namespace"], request["MetricName"]) == ("AWS/SageMaker", "Invocations"), request
        names = {dimension["Name"]: dimension["Value"] for dimension in request["Dimensions"]}
        assert names.keys() == {"EndpointName", "VariantName"}, names
        calls = self.invocations.get(f"{names['EndpointName']}/{names['VariantName']}", {})
        points = [{"Timestamp": when, "Sum": count, "Unit": "None"} for when, count in calls.items()]
        return {"Label": "Invocations", "Datapoints": points}

    def _delete_alarms(self, request: dict[str, Any]) -> Mapping[str, Any]:
        for name in request["AlarmNames"]:
            self.alarms.pop(name, None)
        return {}
