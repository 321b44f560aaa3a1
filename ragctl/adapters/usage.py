"""CloudWatch: when an endpoint was last called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from ragctl.adapters.aws import aws_errors, client

if TYPE_CHECKING:
    from ragctl.config import Experiment

LOOKED_BACK: Final = timedelta(days=14)
HOUR_S: Final = 3_600


def last_used(experiment: Experiment, endpoint: str, variant: str) -> datetime | None:
    """The hour in which the endpoint's variant was last called; None: not within `LOOKED_BACK`.

    Metrics come some minutes late.
    """
    until = datetime.now(UTC)
    with aws_errors("cloudwatch:GetMetricStatistics", f"endpoint {endpoint}"):
        answer = client("cloudwatch", experiment).get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName="Invocations",
            Dimensions=[
                {"Name": "EndpointName", "Value": endpoint},
                {"Name": "VariantName", "Value": variant},
            ],
            StartTime=until - LOOKED_BACK,
            EndTime=until,
            Period=HOUR_S,
            Statistics=["Sum"],
        )
    used = [point["Timestamp"] for point in answer["Datapoints"] if point["Sum"] > 0]
    return max(used).astimezone(UTC) if used else None
