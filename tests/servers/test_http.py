"""The base of the test servers: what it refuses, records and injects, seen through boto3."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from tests.servers.clients import connect, refused
from tests.servers.http import Fault, Faults, Handler, LoopbackServer, Reply, Request
from tests.servers.process import REPOSITORY, ServerProcess
from tests.servers.s3vectors import S3VectorsServer

ONE = [{"key": "a", "data": {"float32": [1.0, 0.0]}}]


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "tests.servers.s3vectors"])
time.sleep(600)
"""


class Half(LoopbackServer):
    """A server that knows two operations, one of them badly."""

    services = ("s3vectors", "sagemaker-runtime")

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "GetIndex": lambda _: {"index": {}},
            "ListIndexes": self.crash,
            "InvokeEndpoint": lambda request: {"Body": request.body.upper(), "ContentType": "text/plain"},
            "InvokeEndpointAsync": lambda _: Reply(status=202, body=iter([b'{"Inference', b'Id": "7"}'])),
        }

    def crash(self, request: Request) -> Reply:
        raise KeyError(request.match.operation)


def test_what_is_not_known_is_refused_and_remembered() -> None:
    """An operation without a method is answered 501, never guessed, and a test can see it."""
    with Half() as server, connect("s3vectors", server.url) as client:
        message = refused(client, "list_vector_buckets", code="NotImplemented")
    assert message == "Half does not know ListVectorBuckets"
    assert server.unexpected == ["ListVectorBuckets"]


def test_an_ill_formed_reply_is_a_bug_of_the_server() -> None:
    """A reply that does not fit botocore's model, or a crash, is answered 500 and remembered."""
    with Half() as server, connect("s3vectors", server.url) as client:
        refused(client, "get_index", code="InternalServerException", indexArn="a")
        refused(client, "list_indexes", code="InternalServerException", vectorBucketName="abc")
    assert "index.dimension: is required" in server.broken[0]
    assert server.broken[1] == "ListIndexes: KeyError('ListIndexes')"


def test_members_go_where_the_model_wants_them() -> None:
    """Payload and headers reach boto3 as such, and a chunked reply is put together again."""
    with Half() as server, connect("sagemaker-runtime", server.url) as client:
        reply = client.invoke_endpoint(EndpointName="e", Body=b"shout")
        assert (reply["Body"].read(), reply["ContentType"]) == (b"SHOUT", "text/plain")
        asynchronous = client.invoke_endpoint_async(EndpointName="e", InputLocation="s3://b/k")
        assert asynchronous["InferenceId"] == "7"


def test_an_injected_error_has_its_status_and_code(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """A fault answers as the service would, the given number of times, after the calls to skip."""
    arn = make_index()
    server.faults.add(
        Fault("error", "PutVectors", status=429, code="TooManyRequestsException", skip=1, times=2)
    )
    client.put_vectors(indexArn=arn, vectors=ONE)
    refused(client, "put_vectors", code="TooManyRequestsException", indexArn=arn, vectors=ONE)
    refused(client, "put_vectors", code="TooManyRequestsException", indexArn=arn, vectors=ONE)
    client.put_vectors(indexArn=arn, vectors=ONE)
    assert [call.status for call in server.calls_of("PutVectors")] == [200, 429, 429, 200]
    assert server.faults.injected == [("PutVectors", "error")] * 2


def test_a_reset_does_nothing_and_a_lost_reply_does_everything(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """The caller sees the same broken connection, whether or not the write was done."""
    arn = make_index()
    for fault, there in ((Fault("reset", "PutVectors"), []), (Fault("lost", "PutVectors"), ["a"])):
        server.faults.add(fault)
        with pytest.raises(ConnectionClosedError):
            client.put_vectors(indexArn=arn, vectors=ONE)
        assert [v["key"] for v in client.list_vectors(indexArn=arn)["vectors"]] == there


def test_a_hang_outlasts_the_caller(start: Callable[..., S3VectorsServer]) -> None:
    """A call that hangs ends in the caller's own time limit."""
    server = start()
    server.faults.add(Fault("hang", "ListVectorBuckets"))
    with connect("s3vectors", server.url, read_timeout=0.1) as client, pytest.raises(ReadTimeoutError):
        client.list_vector_buckets()


def test_latency_delays_the_reply(start: Callable[..., S3VectorsServer]) -> None:
    """An operation takes the seconds it is given, others do not."""
    server = start(latency={"ListVectorBuckets": 30.0})
    with connect("s3vectors", server.url, read_timeout=0.1) as client:
        client.create_vector_bucket(vectorBucketName="papers")
        with pytest.raises(ReadTimeoutError):
            client.list_vector_buckets()


def test_sdk_retries_get_over_faults(start: Callable[..., S3VectorsServer]) -> None:
    """The SDK takes injected 503 and resets for what they stand for, and retries."""
    server = start()
    server.faults.add(Fault("error"), Fault("reset"))
    retries = {"total_max_attempts": 3, "mode": "standard"}
    with connect("s3vectors", server.url, retries=retries) as client:
        assert client.list_vector_buckets()["vectorBuckets"] == []
    assert [call.status for call in server.calls] == [503, 0, 200]


def test_random_faults_repeat_with_their_seed() -> None:
    """The same seed gives the same faults, so that a failing test can be run again."""

    def drawn(seed: int) -> list[bool]:
        faults = Faults()
        faults.add(Fault("error", probability=0.5, times=None, seed=seed))
        return [faults.draw("PutVectors") is not None for _ in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert 10 < sum(drawn(1)) < 40


def test_the_call_log_tells_sizes(
    server: S3VectorsServer, client: Any, make_index: Callable[..., str]
) -> None:
    """Records per call and bytes on the wire can be asserted on."""
    arn = make_index()
    client.put_vectors(indexArn=arn, vectors=[*ONE, {"key": "b", "data": {"float32": [0.0, 1.0]}}])
    (call,) = server.calls_of("PutVectors")
    assert call.sizes["vectors"] == 2
    assert call.body_bytes == server.report()["largest_body"] > 100


def test_a_server_process_serves_and_ends(tmp_path: Any) -> None:
    """As its own process a server prints its URL, takes options, reports what happened, and ends on SIGTERM."""
    faults = '[{"kind": "error", "operation": "CreateVectorBucket", "status": 503}]'
    with ServerProcess("tests.servers.s3vectors", "--default-mode", "CLASSIC", "--faults", faults) as server:
        with connect("s3vectors", server.url) as client:
            refused(
                client, "create_vector_bucket", code="ServiceUnavailableException", vectorBucketName="papers"
            )
            client.create_vector_bucket(vectorBucketName="papers")
            bucket = client.get_vector_bucket(vectorBucketName="papers")["vectorBucket"]
        assert bucket["defaultIndexMode"] == "CLASSIC"
        assert server.report()["calls"] == {"CreateVectorBucket": 2, "GetVectorBucket": 1}
    assert server.process.returncode == 0


def test_a_server_process_does_not_outlive_its_parent() -> None:
    """When the parent is killed the server ends by itself, so no test run leaves one behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        assert output.readline().startswith("http://127.0.0.1:")
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        # The server holds the other end of this pipe: its end is the end of the file.
        assert output.read() == ""


def test_a_stopped_server_refuses_connections(client_of: Callable[..., Any]) -> None:
    """After the with statement nothing listens any more, and kept-alive connections are gone."""
    with S3VectorsServer() as server:
        client = client_of(server)
        client.list_vector_buckets()
    with pytest.raises(EndpointConnectionError):
        client.list_vector_buckets()
