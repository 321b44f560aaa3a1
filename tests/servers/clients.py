"""boto3 clients for the test servers: fake keys, one attempt, no network but the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

REGION = "eu-west-1"


@contextmanager
def connect(service: str, url: str, *, region: str = REGION, **config: Any) -> Iterator[Any]:
    """Yield a client of `service` at `url`, closed at the end; `config` is botocore's."""
    settings = Config(**{"retries": {"total_max_attempts": 1, "mode": "standard"}, **config})
    client = _session().client(service, region_name=region, endpoint_url=url, config=settings)
    try:
        yield client
    finally:
        client.close()


@lru_cache
def _session() -> Any:
    """Return one session for all clients, so that the models are loaded once."""
    return boto3.Session(aws_access_key_id="test", aws_secret_access_key="test")


def refused(
    client: Any, operation: str, *, code: str = "ValidationException", path: str = "", **request: Any
) -> str:
    """Make a call that must end in this error, naming this field if a path is given; return its message."""
    with pytest.raises(ClientError) as caught:
        getattr(client, operation)(**request)
    response = caught.value.response
    assert response["Error"]["Code"] == code
    if path:
        assert path in [field["path"] for field in response["fieldList"]]
    return str(response["Error"]["Message"])
