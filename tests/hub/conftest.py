"""One loopback Hub and one long-lived client a module, for the tests of push and load."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import Client
from loopback import LoopbackHub


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def shared(hub: LoopbackHub, homes: Path) -> Iterator[Client]:
    client = Client(hub, homes / "alice")
    yield client
    client.close()
    assert "hf_alice" not in client.heard


@pytest.fixture
def alice(hub: LoopbackHub, shared: Client) -> Iterator[Client]:
    """Alice's client; no test may leave a fault behind, or leak a token."""
    hub.log(clear=True)
    yield shared
    assert hub.leaks() == []
    hub.core.faults.clear()


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repo name of its own for each test."""
    return f"alice/{zlib.crc32(request.node.name.encode())}"
