"""`s3vectors-embed put` as it is, but for where it calls: its address of S3 Vectors is fixed, and it asks STS who runs it.

Takes the command's own arguments. Prints the seconds it took, imports aside.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import boto3
from s3vectors.cli import main

_client = boto3.Session.client


class _Identity:
    """Stands for the STS client."""

    def get_caller_identity(self) -> dict[str, str]:
        return {
            "Account": "123456789012",
            "Arn": "arn:aws:iam::123456789012:user/benchmark",
            "UserId": "benchmark",
        }


def client(self: boto3.Session, service: str, *arguments: Any, **options: Any) -> Any:
    if service == "sts":
        return _Identity()
    if service == "s3vectors":
        options["endpoint_url"] = os.environ["AWS_ENDPOINT_URL_S3VECTORS"]
    return _client(self, service, *arguments, **options)


boto3.Session.client = client
sys.argv[0] = "s3vectors-embed"
start = time.perf_counter()
try:
    main()
except SystemExit as end:
    if end.code:
        raise
finally:
    print(f"\n{json.dumps({'seconds': time.perf_counter() - start})}")
