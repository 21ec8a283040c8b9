"""One ComfyUI process with the pack linked into its custom nodes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.install import ComfyUI

UP_WITHIN = 180.0  # seconds; 10 are usual
# ComfyUI says so in its log, and goes on.
FAILED = ("IMPORT FAILED", "Cannot import", "Error while calling comfy_entrypoint")


class ServerError(RuntimeError):
    """The server did not start, has ended, or answered with an error; the message says what it said."""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI: its address, its files (`base` holds models, input, output, custom_nodes), its log."""

    port: int
    base: Path
    log: Path
    process: subprocess.Popen[bytes]
    started: float  # time.monotonic()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """What GET, or POST of a body as JSON (bytes as they are), answers: JSON as objects, else bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                said = answer.read()
                if "json" in answer.headers.get("Content-Type", ""):
                    return json.loads(said)
                return said
        except (urllib.error.HTTPError, TimeoutError):
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{path}: {error}; the end of its log:\n{self.log_tail()}") from error

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def failed_imports(self) -> list[str]:
        """Lines of the log in which ComfyUI says that it could not import something."""
        text = self.log.read_text(errors="replace")
        return [line for line in text.splitlines() if any(word in line for word in FAILED)]


@contextlib.contextmanager
def serve(comfyui: ComfyUI, base: Path, packs: dict[str, Path]) -> Iterator[Server]:
    """Start ComfyUI with these packs, by the name of their folder in custom_nodes; stop it in the end."""
    (base / "custom_nodes").mkdir(parents=True)
    for name, pack in packs.items():
        (base / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
    log = base / "server.log"
    port = _free_port()
    command = [str(comfyui.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    # Models of the tests are so small that threads cost more time than they save, and far more beside a busy browser.
    settings = {"OMP_NUM_THREADS": "1"} | os.environ
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=comfyui.folder,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(port, base, log, process, time.monotonic())
    try:
        _wait_until_up(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: Server) -> None:
    while True:
        with contextlib.suppress(ServerError, TimeoutError):
            server.request("/system_stats")
            return
        if server.process.poll() is not None:
            raise ServerError(f"ComfyUI ended with {server.process.returncode} at its start:\n{server.log_tail()}")
        if time.monotonic() - server.started > UP_WITHIN:
            raise ServerError(f"ComfyUI did not answer within {UP_WITHIN:.0f} s:\n{server.log_tail()}")
        time.sleep(0.2)
