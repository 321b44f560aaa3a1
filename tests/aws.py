"""AWS on this machine: the test servers, and the environment of a ragctl that takes them for AWS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.servers.bedrock import BedrockServer, Manner
from tests.servers.clients import connect
from tests.servers.s3vectors import S3VectorsServer
from tests.servers.sagemaker_runtime import EmbeddingModel, Model, SageMakerRuntime, TextModel

SECRET = "a-key-that-opens-nothing"
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nobody listens


@dataclass(frozen=True)
class Cloud:
    """The services that an experiment needs, and nothing else."""

    vectors: S3VectorsServer
    sagemaker: SageMakerRuntime
    bedrock: BedrockServer

    @property
    def env(self) -> dict[str, str]:
        """What sends ragctl here, with keys that are none."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": NOWHERE,
            "AWS_ENDPOINT_URL_S3VECTORS": self.vectors.url,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.sagemaker.url,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": self.bedrock.url,
            "AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME": self.bedrock.url,
        }

    @property
    def contents(self) -> dict[str, int]:
        """How many vectors each index holds, by its name."""
        return {arn.rpartition("/")[2]: count for arn, count in self.vectors.report()["vectors"].items()}

    @property
    def buckets(self) -> list[str]:
        """The names of the vector buckets."""
        with connect("s3vectors", self.vectors.url) as client:
            return [bucket["vectorBucketName"] for bucket in client.list_vector_buckets()["vectorBuckets"]]


@contextmanager
def serving(**options: object) -> Iterator[Cloud]:
    """The servers, which must end with nothing unknown asked of them and no ill-formed reply.

    `options` are those of the S3 Vectors server. The text models think before they speak.
    """
    models: dict[str, Model] = {
        "embedder": EmbeddingModel("tei", 3584),
        "writer": TextModel("chat", thinks="implied"),
    }
    with ExitStack() as stack:
        cloud = Cloud(
            stack.enter_context(S3VectorsServer(**options)),  # type: ignore[arg-type]  # handed on as they are
            stack.enter_context(SageMakerRuntime(models)),
            stack.enter_context(BedrockServer(Manner(thinks="blocks"))),
        )
        yield cloud
    servers = (cloud.vectors, cloud.sagemaker, cloud.bedrock)
    assert [(server.unexpected, server.broken) for server in servers] == [([], [])] * len(servers)
