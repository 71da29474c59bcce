"""The figures of `bench_swarm` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FIRST_TOKEN = (
    ("model", "model"),
    ("peers", "peers"),
    ("prompt", "prompt"),
    ("held tokens", "held_tokens"),
    ("alone s", "plain_seconds"),
    ("swarm s", "swarm_seconds"),
    ("ratio", "ratio"),
)

TABLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "decode": (
        ("model", "model"),
        ("peers", "peers"),
        ("version", "version"),
        ("alone tok/s", "plain_tokens_per_second"),
        ("swarm tok/s", "swarm_tokens_per_second"),
        ("ratio", "ratio"),
        ("whole call", "whole_call_ratio"),
        ("alone CPU ms", "plain_cpu_seconds_per_token"),
        ("swarm CPU ms", "swarm_cpu_seconds_per_token"),
        ("CPU ratio", "cpu_ratio"),
        ("pushed", "pushed_share"),
        ("same tokens", "same_tokens"),
    ),
    "hops": (
        ("model", "model"),
        ("peers", "peers"),
        ("version", "version"),
        ("alone CPU ms", "plain_cpu_seconds_per_token"),
        ("client CPU ms", "client_cpu_seconds_per_token"),
        ("peers CPU ms", "peers_cpu_seconds_per_token"),
        ("beyond CPU ms", "beyond_cpu_seconds_per_token"),
        ("same tokens", "same_tokens"),
    ),
    "ttft": _FIRST_TOKEN,
    "wan_ttft": _FIRST_TOKEN,
    "wan": (
        ("model", "model"),
        ("peers", "peers"),
        ("tok/s", "swarm_tokens_per_second"),
        ("limit", "limit_tokens_per_second"),
        ("with compute", "limit_with_compute_tokens_per_second"),
        ("RTT ms", "rtt_seconds"),
        ("pushed", "pushed_share"),
        ("same tokens", "same_tokens"),
    ),
    "wan_lookup": (
        ("model", "model"),
        ("peers", "peers"),
        ("look-up tokens", "prompt_lookup_num_tokens"),
        ("tok/s", "swarm_tokens_per_second"),
        ("alone tok/s", "plain_tokens_per_second"),
        ("RTT ms", "rtt_seconds"),
        ("same tokens", "same_tokens"),
    ),
    "start": (
        ("model", "model"),
        ("imports s", "baseline_seconds"),
        ("peer s", "peer_seconds"),
        ("above s", "seconds_above"),
        ("imports CPU s", "baseline_cpu_seconds"),
        ("peer CPU s", "peer_cpu_seconds"),
        ("imports MB", "baseline_bytes"),
        ("peer MB", "peer_bytes"),
        ("above MB", "bytes_above"),
    ),
}


def table(section: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A section's rows as a Markdown table."""
    columns = TABLES[section]
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(key, row) for _, key in columns) + " |" for row in rows]
    return "\n".join([f"{section}:", *lines, ""])


def cell(key: str, row: Mapping[str, Any]) -> str:
    """One value for people; seconds per token and round trips in milliseconds, bytes in MB."""
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if key == "pushed_share":
        return f"{value:.1%}"
    if key == "rtt_seconds":
        return f"{1000 * min(value):.1f}-{1000 * max(value):.1f}"
    if key.endswith("_per_token"):
        return f"{1000 * value:.2f}"
    if "bytes" in key:
        return f"{value / 1e6:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
