"""Queue prompts in ComfyUI's API format, and hear over the websocket how they fare."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from harness.server import Server, ServerError

Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type", "inputs"}
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Refused(Exception):
    """The server did not queue a prompt; `errors` are sentences by node id, `message` is about the whole."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.message = f"{answer['error']['message']}: {answer['error']['details']}"
        self.errors = {node: _sentences(found) for node, found in answer["node_errors"].items()}
        super().__init__(f"{self.message} {self.errors}")


def _sentences(found: dict[str, Any]) -> list[str]:
    return [f"{error['message']}: {error['details']}" for error in found["errors"]]


@dataclass(frozen=True)
class Event:
    """One message of the websocket, and when it came (time.monotonic())."""

    type: str
    data: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Run:
    """How a prompt ended: "success", "error" or "interrupted", with what its nodes told the page, by node id."""

    prompt_id: str
    end: str
    outputs: dict[str, dict[str, Any]]
    events: list[Event]
    error: dict[str, Any] | None  # node_id, node_type, exception_message, exception_type, traceback

    def told(self, type: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == type]

    @property
    def sentence(self) -> str:
        """What the failed node shows."""
        assert self.error is not None, f"the prompt ended in {self.end}"
        return self.error["exception_message"].strip()


@dataclass
class Client:
    """One websocket of a server; use as a context manager."""

    server: Server
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __enter__(self) -> Client:
        self._heard: list[Event] = []
        self._news = threading.Condition()
        self._closed = False
        address = f"ws://127.0.0.1:{self.server.port}/ws?clientId={self.id}"
        self._open = contextlib.ExitStack()
        socket = self._open.enter_context(connect(address, max_size=None, ping_interval=None, proxy=None))
        threading.Thread(target=self._listen, args=(socket,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _listen(self, socket: ClientConnection) -> None:
        try:
            for message in socket:
                if isinstance(message, str):  # others are images that ComfyUI previews by itself
                    told = json.loads(message)
                    self._hear(Event(told["type"], told.get("data") or {}, time.monotonic()))
        except ConnectionClosed:
            pass
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _hear(self, event: Event) -> None:
        with self._news:
            self._heard.append(event)
            self._news.notify_all()

    def object_info(self) -> dict[str, Any]:
        return self.server.request("/object_info")

    def interrupt(self) -> None:
        self.server.request("/interrupt", {})

    def stop_all(self) -> None:
        """Empty the queue, interrupt what runs, and wait until it has stopped."""
        deadline = time.monotonic() + 60
        while any(self.server.request("/queue").values()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"what runs doesn't stop when interrupted:\n{self.server.log_tail()}")
            self.server.request("/queue", {"clear": True})
            self.interrupt()
            time.sleep(0.1)

    def queue(self, prompt: Prompt) -> Job:
        """Queue a prompt without waiting; raises Refused where the server finds it wrong."""
        try:
            answer = self.server.request("/prompt", {"prompt": prompt, "client_id": self.id})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise ServerError(f"/prompt answered {error.code}:\n{self.server.log_tail()}") from error
            raise Refused(json.load(error)) from None
        return Job(self, answer["prompt_id"], {node: _sentences(e) for node, e in answer["node_errors"].items()})

    def run(self, prompt: Prompt, timeout: float = 120) -> Run:
        """Queue a prompt and wait until it has ended, in whichever way."""
        return self.queue(prompt).end(timeout)

    def of(self, prompt_id: str) -> list[Event]:
        """What was heard of a prompt so far, oldest first."""
        return [event for event in self._heard if event.data.get("prompt_id") == prompt_id]

    def wait(self, prompt_id: str, wanted: Callable[[Event], bool], timeout: float) -> Event:
        """The first such event of a prompt, which may have come already."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                found = next((event for event in self.of(prompt_id) if wanted(event)), None)
                if found:
                    return found
                if self._closed:
                    raise ServerError(f"the server closed the connection; its log:\n{self.server.log_tail()}")
                if not self._news.wait(deadline - time.monotonic()):
                    heard = [event.type for event in self.of(prompt_id)][-12:]
                    raise TimeoutError(f"not within {timeout:.0f} s; heard last {heard}:\n{self.server.log_tail()}")


@dataclass(frozen=True)
class Job:
    """A queued prompt. `node_errors`: sentences on the output nodes that the server leaves out, by node id."""

    client: Client
    prompt_id: str
    node_errors: dict[str, list[str]]

    def wait(self, type: str, timeout: float = 120, **data: Any) -> Event:
        """The first event of this type in which each of `data` is as said."""
        return self.client.wait(
            self.prompt_id, lambda e: e.type == type and all(e.data.get(k) == v for k, v in data.items()), timeout
        )

    def end(self, timeout: float = 120) -> Run:
        last = self.client.wait(self.prompt_id, lambda event: event.type in ENDS, timeout)
        # The server files a prompt in its history a moment after it has told its end.
        entry: dict[str, Any] | None = None
        while entry is None:
            entry = self.client.server.request(f"/history/{self.prompt_id}").get(self.prompt_id)
            if time.monotonic() - last.at > 30:
                raise TimeoutError(f"{self.prompt_id} has ended and is not in the history")
        return Run(
            self.prompt_id,
            last.type.removeprefix("execution_"),
            entry["outputs"],
            self.client.of(self.prompt_id),
            last.data if last.type == "execution_error" else None,
        )
