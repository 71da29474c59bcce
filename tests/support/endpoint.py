"""An endpoint of this process, on a loop in a thread of its own, before the peers of a `SwarmThread`."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from blockswarm.client.api import server
from blockswarm.client.api.answering import Endpoint
from blockswarm.client.api.config import EndpointConfig, ModelConfig
from blockswarm.client.api.timing import EndpointTiming
from blockswarm.client.program.options import SwarmOptions
from blockswarm.client.program.terminal import Spinner
from blockswarm.client.web.listening import listening_socket
from support.swarm_thread import SwarmThread

NAME = "demo"
"""The model's name in requests."""


@dataclass
class RunningEndpoint:
    """Made by `running_endpoint`."""

    endpoint: Endpoint
    server: server.EndpointServer
    loop: asyncio.AbstractEventLoop
    port: int

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client; it does not try again unless told."""
        options = {"api_key": "none", "max_retries": 0, "timeout": 60.0} | options
        return openai.OpenAI(base_url=f"{self.root}/v1", **options)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.root + path, timeout=60) as response:
            return response.read().decode()

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (in small letters) and body, whatever the status is."""
        asked = urllib.request.Request(
            self.root + path, data=body, headers={"content-type": "application/json", **(headers or {})}, method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:
                return response.status, _small(response.headers), response.read()
        except urllib.error.HTTPError as error:
            return error.code, _small(error.headers), error.read()

    def complete(self, sent: dict[str, str] | None = None, **fields: Any) -> tuple[int, dict[str, str], Any]:
        """A completion without the official client; `sent` are headers."""
        status, headers, body = self.post("/v1/completions", json.dumps({"model": NAME, **fields}).encode(), sent)
        return status, headers, json.loads(body)


def _small(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def running_endpoint(
    swarm: SwarmThread, folder: Path, *, timing: EndpointTiming | None = None, patience_seconds: float = 30.0,
    send_buffer_bytes: int | None = None,
    model: dict[str, Any] | None = None, **options: Any,
) -> Iterator[RunningEndpoint]:  # fmt: skip
    """An endpoint for the model in `folder`; `model` and `options` are fields of ModelConfig and EndpointConfig."""
    reached = SwarmOptions((swarm.swarm.peers[0].address,), swarm.swarm.swarm_key, patience_seconds=patience_seconds)
    config = EndpointConfig((ModelConfig(str(folder), NAME, reached, **(model or {})),), **options)
    with ExitStack() as stack:
        listening = stack.enter_context(listening_socket("127.0.0.1", 0))
        if send_buffer_bytes is not None:  # that of the connections, too
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        models = stack.enter_context(server.open_models(config.models, Spinner()))
        endpoint = server.make_endpoint(models, config, server.make_keys(config), timing or EndpointTiming())
        ready = threading.Event()
        running = server.endpoint_server(endpoint, ready.set)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(running.serve(sockets=[listening]),))
        thread.start()
        try:
            assert ready.wait(60)
            yield RunningEndpoint(endpoint, running, loop, listening.getsockname()[1])
        finally:
            running.should_exit = True
            thread.join(60)
            loop.close()
