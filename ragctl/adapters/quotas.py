"""Service Quotas: how many instances of a type the account may run behind endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragctl.adapters.aws import aws_errors, client

if TYPE_CHECKING:
    from ragctl.config import Experiment


def endpoint_quota(experiment: Experiment, instance_type: str) -> float | None:
    """The quota "<type> for endpoint usage"; None where the account has no entry for it.

    The codes differ from type to type, so the name is looked for. Raises PermissionDenied without
    servicequotas:ListServiceQuotas.
    """
    name = f"{instance_type} for endpoint usage"
    with aws_errors("servicequotas:ListServiceQuotas", f'the quota "{name}"'):
        pages = client("service-quotas", experiment).get_paginator("list_service_quotas")
        for page in pages.paginate(ServiceCode="sagemaker"):
            for quota in page["Quotas"]:
                if quota["QuotaName"] == name:
                    return float(quota["Value"])
    return None
