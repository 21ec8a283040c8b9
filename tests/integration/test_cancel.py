"""Cancelling a stream: it ends within one model call, and gives its memory back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from harness.client import Client
from harness.graph import Nodes, prompt_of
from harness.server import Server

VIDEOS = 64
KEYS = 48 * 16 * VIDEOS * 256 * 4
"""Bytes of one block's keys: 48 frames of 16 tokens of 256 channels, float32. So many (50 MB) are given back to the
system when they are freed; of smaller pieces it depends."""


def streamed(chunks: int, batch: int) -> Nodes:
    inputs = {"model": ["demo", 0], "positive": ["demo", 1], "width": 32, "height": 32, "window": 48}
    stream = ("QarvdStream", inputs | {"chunks": chunks, "batch_size": batch, "seed": time.time_ns() % 2**32})
    return {"demo": ("QarvdDemoModel", {}), "stream": stream}


def allocated(server: Server) -> int:
    """Bytes that the server's process has asked for, touched or not."""
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("what a process has allocated is read from /proc, which this system lacks")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def test_cancelling_ends_a_stream_within_one_model_call_and_frees_its_cache(
    comfy: Client, object_info: dict[str, Any], server: Server
) -> None:
    job = comfy.queue(prompt_of(streamed(chunks=300, batch=VIDEOS), object_info))
    job.wait("qarvd.chunk", chunk=1)
    during = allocated(server)
    comfy.interrupt()
    heard = len(comfy.of(job.prompt_id))
    assert job.end(timeout=60).end == "interrupted"
    assert during - allocated(server) > 7 * KEYS  # of keys and values of four blocks
    after = comfy.run(prompt_of(streamed(chunks=1, batch=1), object_info))
    assert after.end == "success"
    later = [event.type for event in comfy.of(job.prompt_id)[heard:]]
    assert later.count("progress") <= 1 and later.count("qarvd.chunk") <= 1  # what was under way to us
