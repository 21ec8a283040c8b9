"""What tests of the pack in ComfyUI share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness.client import Client
from harness.server import Server


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, Any]:
    """What ComfyUI tells the page of every node."""
    return server.request("/object_info")


@pytest.fixture(scope="session")
def ours(object_info: dict[str, Any]) -> dict[str, Any]:
    """What it tells of the pack's nodes."""
    return {kind: told for kind, told in object_info.items() if kind.startswith("Qarvd")}


@pytest.fixture(scope="module")
def shared_comfy(server: Server) -> Any:
    """A client for what is run once, for several tests of a file."""
    with Client(server) as client:
        yield client


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the server, see harness.server."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
