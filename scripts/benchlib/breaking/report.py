"""The outcomes of cases for people: a line for each as it ends, a table, and a summary."""

from __future__ import annotations

from collections.abc import Sequence

from .play import Outcome


def line(outcome: Outcome) -> str:
    """One case as it ends."""
    passed = "yes" if outcome.passed else "NO "
    parts = [f"{passed} {outcome.case}: {_tokens(outcome)}, stall {outcome.stall_seconds:.2f} s"]
    parts += [f"{outcome.replayed_tokens} replayed"] if outcome.replayed_tokens else []
    parts += [memory] if (memory := _memory(outcome)) else []
    parts += [" ".join(outcome.events)] if outcome.events else []
    parts += [text for text in (outcome.remark, outcome.log_line, outcome.problem) if text]
    return "; ".join(parts)


def table(outcomes: Sequence[Outcome]) -> str:
    """All cases, as Markdown."""
    moments = {o.fault_at for o in outcomes}
    moment = f" (after {moments.pop()} tokens)" if len(moments) == 1 else ""
    heads = [
        f"fault{moment}", "passed", "tokens", "longest stall s", "whole text s", "replayed tokens",
        "memory MiB (client, peer)", "what the client did", "afterwards", "what a log says",
    ]  # fmt: skip
    rows = [heads, ["---"] * len(heads), *map(_cells, outcomes)]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", summary(outcomes)])


def _cells(o: Outcome) -> list[str]:
    afterwards = "; ".join(text for text in (o.remark, o.problem) if text)
    cells = [
        o.case, "yes" if o.passed else "NO", _tokens(o), f"{o.stall_seconds:.2f}", f"{o.total_seconds:.1f}",
        str(o.replayed_tokens), _memory(o), ", ".join(o.events), afterwards, o.log_line,
    ]  # fmt: skip
    return [cell.replace("|", "/").replace("\n", " ") for cell in cells]


def _tokens(o: Outcome) -> str:
    return f"{o.tokens}, {'same' if o.same_tokens else 'WRONG'}" + (f", {o.error}" if o.error else "")


def _memory(o: Outcome) -> str:
    return ", ".join(f"{mib:+.0f}" for mib in (o.client_mib, o.peers_mib) if mib is not None)


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many passed; the stalls, and what of them was not the computing of the replay."""
    passed = sum(o.passed for o in outcomes)
    texts = [f"{passed} of {len(outcomes)} passed"]
    for name, values in (
        ("stall", [o.stall_seconds for o in outcomes]),
        ("beyond the replay", [max(0.0, o.stall_seconds - o.replay_seconds) for o in outcomes]),
    ):
        middle, high, most = percentiles(values)
        texts.append(f"{name} p50 {middle:.2f}, p95 {high:.2f}, max {most:.2f} s")
    return "; ".join(texts)


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 95th percentile and the largest."""
    ordered = sorted(values)
    middle, high = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
    return middle, high, ordered[-1]
