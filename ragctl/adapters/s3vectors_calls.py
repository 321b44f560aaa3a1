"""Calls to S3 Vectors: the one place where they are tried again, and where writes are paced.

The SDK is asked to make a single attempt. What it would do is not enough for this service: it retries a 503 three
times within 40 ms, where capacity takes seconds to come, and its attempts would go past the limiter of the index.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

import botocore.exceptions as bc
from botocore import xform_name

from ragctl import repeats
from ragctl.adapters.aws import CONNECTION_ERRORS, THROTTLE_CODES, aws_errors, error_code
from ragctl.errors import NotFound, ServiceError
from ragctl.limiter import Limiter, Turn

log = logging.getLogger("ragctl.s3vectors")

# Seconds without any success after which a throttled call is given up: where a person waits, and in bulk work.
QUICK_S: Final = 60.0
BULK_S: Final = 600.0
BROKEN_ATTEMPTS: Final = 5  # in a row, for broken connections and faults inside the service
LONGEST_WAIT_S: Final = 4.0

VENDOR_ERRORS: Final = (bc.ClientError, bc.BotoCoreError, *CONNECTION_ERRORS)
ONE_ATTEMPT: Final[dict[str, Any]] = {
    "retries": {"mode": "standard", "total_max_attempts": 1},
    "connect_timeout": 10,
}

WRITES: Final = ("PutVectors", "DeleteVectors")

Item = TypeVar("Item")


class Conflict(ServiceError):
    """It is there already, is not empty, or is being changed by somebody else (409)."""


class Invalid(ServiceError):
    """The service finds fault with the request itself (ValidationException)."""


OUR_KINDS: Final[dict[str, type[ServiceError]]] = {
    "ConflictException": Conflict,
    "ValidationException": Invalid,
}
MISSING: Final = "make and fill it: ragctl ingest CONFIG; or, if it is there, check store.bucket, aws.region and the account"
KMS: Final = "check the KMS key: its state, its policy, and kms:Decrypt for indexing.s3vectors.amazonaws.com"


class Calls:
    """The calls of one index: each is tried again while that makes sense, then ends in an error of our tree."""

    def __init__(
        self,
        client: Any,
        bucket: str,
        index: str,
        limiter: Limiter,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client, self._limiter = client, limiter
        self._clock, self._sleep = clock, sleep
        self._bucket = {"vectorBucketName": bucket}
        self._index = {**self._bucket, "indexName": index}
        # Called last of all; what it raises ends the write
        self.before_write: Callable[[], None] = lambda: None
        # Of the write of this thread: `vectors`, how many it has, 0 for none; `turn`, from when it leaves until it ends.
        self._writing = threading.local()
        for operation in WRITES:
            client.meta.events.register(f"before-send.s3vectors.{operation}", self._await_turn)
        self._names = (f"vector bucket {bucket}", f"index {bucket}/{index}")

    def of_bucket(self, operation: str, **request: Any) -> dict[str, Any]:
        """Call an operation on the bucket."""
        attempts = self._attempts(operation, self._names[0], QUICK_S)
        return self._call(operation, {**self._bucket, **request}, attempts)

    def of_resource(self, operation: str, arn: str, **request: Any) -> dict[str, Any]:
        """Call an operation on tags."""
        return self._call(operation, {"resourceArn": arn, **request}, self._attempts(operation, arn, QUICK_S))

    def of_index(self, operation: str, *, patience_s: float = QUICK_S, **request: Any) -> dict[str, Any]:
        """Call an operation on the index that writes no vectors."""
        attempts = self._attempts(operation, self._names[1], patience_s)
        return self._call(operation, {**self._index, **request}, attempts)

    def write(
        self, operation: str, items: Sequence[Item], request: Callable[[Sequence[Item]], Mapping[str, Any]]
    ) -> None:
        """Write or delete items at the pace of the index; what is too much for the service goes in halves."""
        method = getattr(self._client, xform_name(operation))
        attempts = self._attempts(operation, self._names[1], BULK_S, self._limiter.slow_down)
        pending = [items] if items else []
        while pending:
            batch = pending.pop()
            self._writing.vectors = len(batch)
            try:
                self._write(method, request(batch))
            except VENDOR_ERRORS as error:
                attempts.failed(error)
                pending += _halves(batch) if _status(error) == 503 else [batch]
            else:
                attempts.succeeded()
            finally:
                self._writing.vectors = 0

    def _write(self, method: Callable[..., object], request: Mapping[str, Any]) -> None:
        """Make the write of this thread; its turn ends with it, however that is, for others wait for the end of it."""
        failed = True
        try:
            method(**self._index, **request)
            failed = False
        finally:
            self._end_turn(failed=failed)

    def _await_turn(self, **_: Any) -> None:
        """Runs when a write is encoded and signed: what is spaced are calls as they leave, not as they are begun."""
        if vectors := getattr(self._writing, "vectors", 0):
            self._end_turn(failed=True)  # of the same write, if the SDK sends it once more after all
            self._writing.turn = self._limiter.acquire(vectors)
            self.before_write()

    def _end_turn(self, *, failed: bool) -> None:
        turn: Turn | None = getattr(self._writing, "turn", None)
        if turn is not None:
            self._writing.turn = None
            self._limiter.ended(turn, failed=failed)

    def _call(self, operation: str, request: Mapping[str, Any], attempts: Attempts) -> dict[str, Any]:
        method = getattr(self._client, xform_name(operation))
        while True:
            try:
                answer: dict[str, Any] = method(**request)
            except VENDOR_ERRORS as error:
                attempts.failed(error)
            else:
                return answer

    def _attempts(
        self,
        operation: str,
        resource: str,
        patience_s: float,
        on_throttle: Callable[[], None] = lambda: None,
    ) -> Attempts:
        return Attempts(f"s3vectors:{operation}", resource, patience_s, self._clock, self._sleep, on_throttle)


class Attempts:
    """What is left of the patience with one call, or with one batch and its halves."""

    def __init__(
        self,
        action: str,
        resource: str,
        patience_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        on_throttle: Callable[[], None],
    ) -> None:
        self._action, self._resource = action, resource
        self._patience_s = patience_s
        self._clock, self._sleep, self._on_throttle = clock, sleep, on_throttle
        self.succeeded()

    def succeeded(self) -> None:
        """Something got through: all patience is back."""
        self._throttled = self._broken = 0
        self._until = self._clock() + self._patience_s

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt; raises `error` as one of our tree when there is none."""
        if _is_throttle(error):
            self._on_throttle()
            self._broken = 0  # it answers
            self._throttled += 1
            self._wait(error, min(2.0 ** (self._throttled - 1), LONGEST_WAIT_S))
            repeats.count(throttles=1)
        elif _is_broken(error) and self._broken < BROKEN_ATTEMPTS - 1:
            self._broken += 1
            self._wait(error, 0.1 * 2**self._broken)
            repeats.count(retries=1)
        else:
            self._give_up(error)

    def _wait(self, error: Exception, longest: float) -> None:
        # Half of the wait is by chance, so that callers that failed together do not come back together.
        seconds = longest * random.uniform(0.5, 1)  # noqa: S311 - nothing is kept secret by it
        if self._clock() + seconds > self._until:
            self._give_up(error)
        what = error_code(error) if isinstance(error, bc.ClientError) else type(error).__name__
        log.info("%s on %s: %s, trying again in %.1f s", self._action, self._resource, what, seconds)
        self._sleep(seconds)

    def _give_up(self, error: Exception) -> NoReturn:
        try:
            with aws_errors(self._action, self._resource):
                raise error
        except NotFound as ours:
            raise NotFound(ours.message, hint=MISSING) from error
        except ServiceError as ours:
            code = error_code(error) if isinstance(error, bc.ClientError) else ""
            if code.startswith("Kms"):
                raise ServiceError(ours.message, hint=KMS) from error
            if code in OUR_KINDS:
                raise OUR_KINDS[code](ours.message, hint=ours.hint) from error
            raise


def _status(error: Exception) -> int:
    if not isinstance(error, bc.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def _is_throttle(error: Exception) -> bool:
    if not isinstance(error, bc.ClientError):
        return False
    return _status(error) in (429, 503) or error_code(error) in THROTTLE_CODES


def _is_broken(error: Exception) -> bool:
    return isinstance(error, CONNECTION_ERRORS) or _status(error) in (408, 500, 502, 504)


def _halves(batch: Sequence[Item]) -> list[Sequence[Item]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]
