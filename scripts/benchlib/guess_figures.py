"""The figures of `bench_guess`: runs, medians with their intervals, and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import interval


@dataclass(frozen=True)
class Run:
    """One text in one mode."""

    tokens: tuple[int, ...]
    decode_seconds: float
    """From the first new token to the last, over all turns."""
    decode_tokens: int
    trips: int
    """Steps along the chain, the prompt's included; 0 for the model alone."""
    drafts: Mapping[str, tuple[int, int]]
    """Drafter -> tokens guessed, tokens right."""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Run:
        """An answer of guess_worker.py."""
        drafts = {name: (guessed, right) for name, (guessed, right) in answer["drafts"].items()}
        return cls(tuple(answer["tokens"]), answer["decode_seconds"], answer["decode_tokens"], answer["trips"], drafts)

    @property
    def tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds

    @property
    def guessed(self) -> int:
        return sum(guessed for guessed, _ in self.drafts.values())


def summary(texts: Sequence[Mapping[str, Run]]) -> list[dict[str, Any]]:
    """A row for each mode but "alone": medians over the texts, and ratios to the same text without guesses."""
    rows = []
    for mode in texts[0]:
        if mode == "alone":
            continue
        runs = [text[mode] for text in texts]
        ratios = [text[mode].tokens_per_second / text["off"].tokens_per_second for text in texts]
        by_drafter = drafted(runs)
        guessed, right = (sum(counts[at] for counts in by_drafter.values()) for at in (0, 1))
        rows.append(
            {
                "mode": mode,
                "texts": len(runs),
                "tokens_per_second": statistics.median(run.tokens_per_second for run in runs),
                "ratio": statistics.median(ratios),
                "interval": interval(ratios),
                "ratios": ratios,
                "trips": statistics.median(run.trips for run in runs),
                "tokens_per_trip": sum(len(run.tokens) for run in runs) / sum(run.trips for run in runs),
                "acceptance": right / guessed if guessed else None,
                "guessed": guessed,
                "drafters": by_drafter,
                "same_tokens": all(text[mode].tokens == text["off"].tokens for text in texts),
            }
        )
    return sorted(rows, key=lambda row: (row["mode"] != "off", row["mode"]))


def drafted(runs: Sequence[Run]) -> dict[str, tuple[int, int]]:
    """By drafter, the tokens that it guessed in all runs, and those that came."""
    names = sorted({name for run in runs for name in run.drafts})
    counts = {name: [run.drafts.get(name, (0, 0)) for run in runs] for name in names}
    return {name: (sum(c[0] for c in found), sum(c[1] for c in found)) for name, found in counts.items()}


_TEXTS = (
    ("peers", "peers"),
    ("RTT ms", "rtt_ms"),
    ("text", "kind"),
    ("temp.", "temperature"),
    ("mode", "mode"),
    ("tokens/s", "tokens_per_second"),
    ("times plain", "ratio"),
    ("interval", "interval"),
    ("trips", "trips"),
    ("tokens/trip", "tokens_per_trip"),
    ("right", "acceptance"),
    ("guessed", "guessed"),
    ("same tokens", "same_tokens"),
)
_CLIENTS = (
    ("peers", "peers"),
    ("RTT ms", "rtt_ms"),
    ("guesses", "mode"),
    ("pairs", "pairs"),
    ("tokens/s without", "without"),
    ("with", "with"),
    ("ratio", "ratio"),
    ("interval", "interval"),
    ("guessed", "guessed"),
)
TABLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "lines": _TEXTS,
    "loopback": _TEXTS,
    "together": _CLIENTS,
    "crowd": (
        ("others", "others"),
        *_CLIENTS[1:],
        ("kept back", "kept_ratio"),
        ("interval", "kept_interval"),
        ("over kept back", "sent_ratio"),
        ("interval", "sent_interval"),
        ("at the peer ms", "at_peer_ms"),
        ("longer there, of a token", "peer_cost"),
        ("interval", "peer_cost_interval"),
        ("peer busy without", "busy"),
        ("with", "busy_with"),
    ),
    "crowd-model": (
        ("others", "clients"),
        ("RTT ms", "rtt_ms"),
        ("step ms", "step_ms"),
        ("row ms", "row_ms"),
        ("token ms", "token_ms"),
        ("cost %", "cost_percent"),
        ("interval", "interval"),
        ("without rules %", "percent_without_rules"),
        ("tokens with guesses %", "guessing_percent"),
    ),
    "flips": (("text", "kind"), ("tokens", "tokens"), ("flips", "flips"), ("rows guessed", "guessed")),
}


def table(section: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A section's rows as a Markdown table."""
    columns = TABLES[section]
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(key)) for _, key in columns) + " |" for row in rows]
    return "\n".join([f"{section}:", *lines, ""])


def cell(value: Any) -> str:
    """One value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, tuple):
        return " to ".join(f"{bound:.3f}" for bound in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
