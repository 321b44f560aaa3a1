"""What the control plane of SageMaker holds: resources with their tags and, for some, a life in states."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.servers.autoscaling import ACCOUNT, REGION

# kind -> members that hold a name, an ARN and a list; what messages call it
KINDS = {
    "Model": ("ModelName", "ModelArn", "Models", "model"),
    "EndpointConfig": (
        "EndpointConfigName",
        "EndpointConfigArn",
        "EndpointConfigs",
        "endpoint configuration",
    ),
    "Endpoint": ("EndpointName", "EndpointArn", "Endpoints", "endpoint"),
    "InferenceComponent": (
        "InferenceComponentName",
        "InferenceComponentArn",
        "InferenceComponents",
        "inference component",
    ),
}
ARN_TYPES = {
    "Model": "model",
    "EndpointConfig": "endpoint-config",
    "Endpoint": "endpoint",
    "InferenceComponent": "inference-component",
}
STATUS = {"Endpoint": "EndpointStatus", "InferenceComponent": "InferenceComponentStatus"}


@dataclass(frozen=True)
class Fate:
    """What becomes of an endpoint or component: `after` looks it is `end`; None: it never gets there."""

    end: Literal["InService", "Failed"] = "InService"
    after: int | None = 1
    reason: str = (
        "The primary container for production variant AllTraffic did not pass the ping health check."
    )
    deletable: bool = True  # while it is being created; False: refused, as is said of the real service
    delete_after: int | None = 1  # looks until it is gone; None: it stays "Deleting"


@dataclass
class Thing:
    """A resource: what was asked for, its tags and, for what has a life, how far it is."""

    kind: str
    name: str
    request: dict[str, Any]
    tags: dict[str, str]
    created: float
    status: str = ""
    looks: int = 0  # since the status changed
    fate: Fate = field(default_factory=Fate)
    next_config: str | None = None  # of an update under way
    reason: str | None = None
    counts: dict[str, tuple[int, int]] = field(
        default_factory=dict
    )  # variant -> instances now, and asked for

    @property
    def arn(self) -> str:
        return arn_of(self.kind, self.name)

    def look(self) -> None:
        """Come on by one look."""
        self.looks += 1
        if self.status == "Creating" and self.fate.after is not None and self.looks > self.fate.after:
            self._become(self.fate.end)
        elif self.status == "Updating" and self.fate.after is not None and self.looks > self.fate.after:
            if self.fate.end == "InService":
                self.request["EndpointConfigName"] = self.next_config
            else:
                self.reason = self.fate.reason
            self.next_config = None
            self.status, self.looks = "InService", 0

    def _become(self, status: str) -> None:
        self.status, self.looks = status, 0
        self.reason = self.fate.reason if status == "Failed" else None

    @property
    def is_gone(self) -> bool:
        after = self.fate.delete_after
        return self.status == "Deleting" and after is not None and self.looks > after


def arn_of(kind: str, name: str) -> str:
    """The ARN of a resource."""
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{ARN_TYPES[kind]}/{name}"
