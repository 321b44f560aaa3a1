"""What every test gets: no account, no network beyond the loopback interface, no terminal."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("ragctl", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("ragctl")

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the caller's account reaches a test."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "RAGCTL_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    aws = sys.modules.get("ragctl.adapters.aws")  # imported by the tests that need it
    if aws:
        aws.forget()  # the clients of another test, with its variables


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            pytest.fail(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
