"""Settings for all tests: one compute thread, no network, repeatable property tests; `from support...` works."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch or huggingface_hub, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # peers that are killed are part of the tests

# A shell has the jobs in its background ignore Ctrl-C, and the programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Equal inputs on every run; no limit of time, because how long an example takes depends on who else uses the machine.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


USUAL_FAMILIES = {"llama", "gemma3", "mixtral"}
"""The families that `scripts/test --fast` tries: dense, sliding windows, experts."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_what_needs_a_gpu(items)
    mark_rare_families(items)
    put_long_files_first(items)


def put_long_files_first(items: list[pytest.Item]) -> None:
    """Files whose tests wait for real processes, then the others: a long one that begins last is waited for alone."""
    longest = {item.path for item in items if item.get_closest_marker("slow")}
    long = {item.path for item in items if item.get_closest_marker("swarm")}
    items.sort(key=lambda item: (item.path not in longest, item.path not in long))


def skip_what_needs_a_gpu(items: list[pytest.Item]) -> None:
    """Where torch sees no NVIDIA GPU; torch is only imported if there are such tests."""
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def mark_rare_families(items: list[pytest.Item]) -> None:
    """Mark the runs of a test with families of models that are not among the usual ones."""
    tiny_models = sys.modules.get("support.tiny_models")  # imported by tests that have to do with families
    rare = {*tiny_models.SERVED_MODELS} - USUAL_FAMILIES if tiny_models else set()
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        if any(isinstance(value, str) and value in rare for value in parameters):
            item.add_marker(pytest.mark.rare_family)
