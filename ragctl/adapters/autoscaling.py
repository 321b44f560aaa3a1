"""Application Auto Scaling of endpoints: instances of a variant, or copies of an inference component down to none.

A target is named by its resource id ("endpoint/NAME/variant/AllTraffic", "inference-component/NAME"). Removing a
target removes its policies and the alarms that target tracking made for itself; the alarm that wakes a component
from zero is ours to remove.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from ragctl.adapters.aws import aws_errors, client
from ragctl.deployment import Ref
from ragctl.errors import NotFound

if TYPE_CHECKING:
    from ragctl.backends import Autoscaling
    from ragctl.config import Experiment

NAMESPACE: Final = "sagemaker"
_DIMENSIONS: Final = {
    "endpoint": "sagemaker:variant:DesiredInstanceCount",
    "inference-component": "sagemaker:inference-component:DesiredCopyCount",
}
_METRICS: Final = {
    "endpoint": "SageMakerVariantInvocationsPerInstance",
    "inference-component": "SageMakerInferenceComponentInvocationsPerCopy",
}


class Scaling:
    """Scaling targets and alarms of one account and region."""

    def __init__(self, autoscaling: Any, cloudwatch: Any) -> None:
        """Take boto3 clients of application-autoscaling and cloudwatch."""
        self._autoscaling = autoscaling
        self._cloudwatch = cloudwatch

    @classmethod
    def from_config(cls, experiment: Experiment) -> Self:
        """The account and region of the `aws` section."""
        return cls(client("application-autoscaling", experiment), client("cloudwatch", experiment))

    def register(self, ref: Ref, bounds: Autoscaling, tags: Mapping[str, str]) -> None:
        """Make the target and its target tracking; twice is harmless."""
        target = _target(ref)
        with aws_errors("application-autoscaling:RegisterScalableTarget", str(ref)):
            self._autoscaling.register_scalable_target(
                **target, MinCapacity=bounds.min, MaxCapacity=bounds.max, Tags=dict(tags)
            )
        metric = {"PredefinedMetricType": _METRICS[_kind(ref)]}
        tracking = {"TargetValue": bounds.target_invocations, "PredefinedMetricSpecification": metric}
        with aws_errors("application-autoscaling:PutScalingPolicy", str(ref)):
            self._autoscaling.put_scaling_policy(
                **target,
                PolicyName="ragctl-invocations",
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration=tracking,
            )

    def wake(self, alarm: Ref, component: str, tags: Mapping[str, str]) -> None:
        """Make the alarm that gives a component at zero copies one, as soon as a call finds none.

        Target tracking alone never leaves zero: without a copy there are no calls to count (SageMaker developer
        guide, "Scale an endpoint to zero instances").
        """
        target = _target(Ref("scaling-target", f"inference-component/{component}"))
        step = {"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}
        with aws_errors("application-autoscaling:PutScalingPolicy", str(alarm)):
            policy = self._autoscaling.put_scaling_policy(
                **target,
                PolicyName="ragctl-wake",
                PolicyType="StepScaling",
                StepScalingPolicyConfiguration={
                    "AdjustmentType": "ChangeInCapacity",
                    "MetricAggregationType": "Maximum",
                    "Cooldown": 60,
                    "StepAdjustments": [step],
                },
            )
        with aws_errors("cloudwatch:PutMetricAlarm", str(alarm)):
            self._cloudwatch.put_metric_alarm(
                AlarmName=alarm.name,
                AlarmActions=[policy["PolicyARN"]],
                Namespace="AWS/SageMaker",
                MetricName="NoCapacityInvocationFailures",
                Dimensions=[{"Name": "InferenceComponentName", "Value": component}],
                Statistic="Maximum",
                Period=60,
                EvaluationPeriods=1,
                Threshold=1.0,
                ComparisonOperator="GreaterThanOrEqualToThreshold",
                TreatMissingData="missing",
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )

    def describe(self, ref: Ref) -> Mapping[str, Any] | None:
        """What the service says of a target or alarm; None: there is none."""
        if ref.type == "alarm":
            with aws_errors("cloudwatch:DescribeAlarms", str(ref)):
                alarms = self._cloudwatch.describe_alarms(AlarmNames=[ref.name])["MetricAlarms"]
            return alarms[0] if alarms else None
        with aws_errors("application-autoscaling:DescribeScalableTargets", str(ref)):
            targets = self._autoscaling.describe_scalable_targets(
                ServiceNamespace=NAMESPACE, ResourceIds=[ref.name]
            )["ScalableTargets"]
        return targets[0] if targets else None

    def delete(self, ref: Ref) -> bool:
        """Remove a target or alarm; False: there was none."""
        if ref.type == "alarm":
            present = self.describe(ref) is not None  # the service answers the same for one that is not there
            with aws_errors("cloudwatch:DeleteAlarms", str(ref)):
                self._cloudwatch.delete_alarms(AlarmNames=[ref.name])
            return present
        try:
            with aws_errors("application-autoscaling:DeregisterScalableTarget", str(ref)):
                self._autoscaling.deregister_scalable_target(**_target(ref))
        except NotFound:
            return False
        return True


def _kind(ref: Ref) -> str:
    return ref.name.partition("/")[0]


def _target(ref: Ref) -> dict[str, str]:
    dimension = _DIMENSIONS[_kind(ref)]
    return {"ServiceNamespace": NAMESPACE, "ResourceId": ref.name, "ScalableDimension": dimension}
