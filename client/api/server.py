"""Runs an endpoint: connects to the swarms of its models, binds its port, serves until a signal, and stops at once."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import uvicorn

from ...proto.model.checkpoint import open_checkpoint
from ..program.talk import open_talker
from ..program.terminal import Spinner
from ..web.listening import drop_idle_readers, listening_socket, root_address, server_config
from .access.keys import Keys, read_keys
from .answering import Endpoint
from .app import make_app
from .config import EndpointConfig, ModelConfig
from .gate import Gate
from .metrics import EndpointMetrics
from .served import ServedModel, served_model
from .timing import EndpointTiming


def make_keys(config: EndpointConfig) -> Keys:
    """Read the keys of the configuration. Raises UsageError for an invalid file of keys."""
    return Keys(None if config.keys is None else read_keys(config.keys), time.monotonic)


def make_endpoint(
    models: Sequence[ServedModel], config: EndpointConfig, keys: Keys, timing: EndpointTiming
) -> Endpoint:
    """Make an endpoint with this machine's clocks and randomness."""
    gate = Gate(config.max_running, config.max_queue, time.monotonic)
    return Endpoint(
        models={served.name: served for served in models},
        gate=gate,
        metrics=EndpointMetrics(gate),
        clock=time.perf_counter,
        unix_clock=time.time,
        new_seed=lambda: secrets.randbits(63),
        new_id=lambda: secrets.token_hex(12),
        keys=keys,
        allowed_origins=config.allowed_origins,
        loopback_only=not config.public,
        timing=timing,
    )


@contextmanager
def open_models(models: Sequence[ModelConfig], spinner: Spinner) -> Iterator[list[ServedModel]]:
    """Connect to the swarms of all models. Raises SwarmError."""
    with ExitStack() as stack:
        served = []
        for config in models:
            talker = stack.enter_context(open_talker(config.model, config.swarm, spinner, lambda text: None))
            digest = open_checkpoint(config.model, revision=config.swarm.revision).model_digest().hex()
            model = served_model(
                config.name,
                talker,
                fingerprint=f"fp_{digest[:12]}",
                created=int(time.time()),
                max_length=config.max_length,
                default_max_tokens=config.default_max_tokens,
            )
            served.append(model)
        yield served


class EndpointServer(uvicorn.Server):
    """Calls `on_ready` when it is ready, and ends running answers when it stops."""

    def __init__(self, config: uvicorn.Config, endpoint: Endpoint, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._endpoint = endpoint
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._endpoint.answers.stop()
        await super().shutdown(sockets)


def endpoint_server(endpoint: Endpoint, on_ready: Callable[[], object]) -> EndpointServer:
    """Return the server for an endpoint, to be run with a socket of `listening_socket`."""
    timing = endpoint.timing
    config = server_config(make_app(endpoint), head_seconds=timing.body_seconds, stop_seconds=timing.stop_seconds)
    return EndpointServer(config, endpoint, on_ready)


def serve(config: EndpointConfig, spinner: Spinner, tell: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM; `tell` is called with the URL once the endpoint is ready. Raises SwarmError."""
    keys = make_keys(config)
    with listening_socket(config.host, config.port) as listening, open_models(config.models, spinner) as models:
        endpoint = make_endpoint(models, config, keys, EndpointTiming())
        drop_idle_readers(listening, endpoint.timing.send_seconds)
        server = endpoint_server(endpoint, lambda: tell(f"{root_address(listening)}/v1"))
        spinner.stop()
        asyncio.run(server.serve(sockets=[listening]))
