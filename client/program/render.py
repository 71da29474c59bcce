"""The commands' output: text for people, and values for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...routing.swarm import BlockRange, PeerId
from .terminal import block_map, milliseconds, missing_blocks, short_id, table

if TYPE_CHECKING:
    from ...routing.outlook import Outlook
    from .survey import PeerLine, PredictedChain, Pulse
    from .talk import Account


def describe_chain(chain: PredictedChain) -> str:
    """The chain that a request would get, with its predicted times."""
    rows = [
        (
            short_id(hop.peer), hop.name, str(hop.blocks), milliseconds(hop.way_seconds),
            milliseconds(hop.compute_seconds), hop.weights, hop.address,
        )
        for hop in chain.hops
    ]  # fmt: skip
    rows.append(("client", "", "", milliseconds(chain.return_seconds), "", "", ""))
    step = chain.step_seconds
    speed = f"{milliseconds(step)} ms per token, {1 / step:.1f} tokens/s" if step > 0 else "no time per token"
    header = ("peer", "name", "blocks", "way ms", "compute ms", "weights", "address")
    return "\n".join([table(header, rows), f"predicted: {speed}", *_unproven(chain.gap_seconds)])


def chain_as_json(chain: PredictedChain) -> dict[str, object]:
    hops = [{**asdict(hop), "blocks": [hop.blocks.start, hop.blocks.stop]} for hop in chain.hops]
    return {
        "hops": hops,
        "return_seconds": chain.return_seconds,
        "step_seconds": chain.step_seconds,
        "exact": chain.gap_seconds == 0,
        "gap_seconds": _finite(chain.gap_seconds),
    }


def _finite(seconds: float) -> float | None:
    """JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def _unproven(gap_seconds: float) -> list[str]:
    """A line that says so if a chain is not proven to be the best."""
    if gap_seconds == 0:
        return []
    sooner = f"up to {gap_seconds:.2f} s sooner" if math.isfinite(gap_seconds) else "sooner"
    return [f"not proven to be the best chain: another one may be done {sooner}"]


def describe_peers(num_blocks: int, lines: Sequence[PeerLine]) -> str:
    """A table of the peers, and a map of the blocks that they serve."""
    header = (
        "peer", "name", "blocks", "state", "format", "weights", "ms/block", "KV free", "KV total", "sessions", "RTT ms",
        "age s", "address",
    )  # fmt: skip
    rows = [
        (
            short_id(line.peer),
            line.name,
            str(line.blocks or ""),
            line.state if line.rtt_seconds is not None else "silent",
            line.numeric_format,
            line.weights,
            f"{1000 * line.decode_seconds_per_block:.2f}",
            str(line.kv_tokens_free),
            str(line.kv_tokens_total),
            str(line.sessions),
            milliseconds(line.rtt_seconds) if line.rtt_seconds is not None else "",
            f"{line.age_seconds:.0f}" if line.age_seconds is not None else "",
            line.address,
        )
        for line in lines
    ]
    return f"{table(header, rows)}\n\n{block_map(num_blocks, _serving(lines, short_id))}"


def _serving(lines: Sequence[PeerLine], label: Callable[[PeerId], str]) -> list[tuple[str, BlockRange]]:
    return [
        (label(line.peer), line.blocks)
        for line in lines
        if line.blocks is not None and line.state == "serving" and line.weights not in ("", "doubted")
    ]


def peers_as_json(num_blocks: int, lines: Sequence[PeerLine]) -> dict[str, object]:
    described = [
        {**asdict(line), "blocks": [line.blocks.start, line.blocks.stop] if line.blocks else None} for line in lines
    ]
    missing = missing_blocks(num_blocks, [blocks for _, blocks in _serving(lines, str)])
    return {"num_blocks": num_blocks, "missing_blocks": missing, "peers": described}


def describe_outlook(outlook: Outlook) -> str:
    """The promises of the swarm and what it lacks, a line for each figure."""
    claims = [f"  {peer[-8:]} from {before} to {after}" for peer, before, after in outlook.moves]
    uncovered = f"blocks without a server: {', '.join(map(str, outlook.uncovered))}"
    weakest = f"weakest block: {outlook.weakest_block}, with {_times(outlook.weakest_servers, 'server')}"
    return "\n".join(
        [
            f"planned for {_times(outlook.concurrency, 'session')} at once (R)",
            f"a token takes {_duration(outlook.token_seconds)} now",
            f"promised with at most R sessions at once: no wait, and a token within {_duration(outlook.bound_seconds)}"
            " (Theorem 2)",
            f"placed from scratch the peers could promise {_duration(outlook.scratch_bound_seconds)}",
            f"a request takes {_duration(outlook.request_seconds)} among others",
            uncovered if outlook.uncovered else weakest,
            f"claimed moves: {len(claims) or 'none'}",
            *claims,
        ]
    )


def outlook_as_json(outlook: Outlook) -> dict[str, object]:
    """Times in seconds; null where there is none."""

    def finite(seconds: float) -> float | None:
        return seconds if math.isfinite(seconds) else None

    return {
        "R": outlook.concurrency,
        "theorem2_bound_per_token_seconds": finite(outlook.bound_seconds),
        "theorem2_bound_from_scratch_seconds": finite(outlook.scratch_bound_seconds),
        "token_seconds": finite(outlook.token_seconds),
        "request_seconds": finite(outlook.request_seconds),
        "weakest_block": outlook.weakest_block,
        "weakest_block_servers": outlook.weakest_servers,
        "missing_blocks": list(outlook.uncovered),
        "moves": [
            {"peer": peer, "from": str(before) if before else None, "to": str(after)}
            for peer, before, after in outlook.moves
        ],
    }


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if math.isfinite(seconds) else "for ever: no chain is complete"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def describe_pulses(pulses: Sequence[Pulse]) -> str:
    """Round trips, clocks and counters, a paragraph per peer."""
    parts = []
    for pulse in pulses:
        status = pulse.status
        parts.append(
            f"{pulse.address}\n"
            f"  RTT {milliseconds(pulse.best_rtt_seconds)} ms (median {milliseconds(pulse.median_rtt_seconds)}), "
            f"clock {1000 * pulse.clock_offset_seconds:+.1f} ms\n"
            f"  model {pulse.name or '(not told)'} {pulse.digest[:12]}, {status.sessions} sessions, "
            f"{status.kv_tokens_free} KV tokens free\n"
            f"  steps: {status.steps_pushed} pushed, {status.steps_relayed} relayed, {status.steps_answered} answered; "
            f"{status.rebuilt_tokens} tokens rebuilt, {status.replay_bytes} bytes kept for replay"
        )
    return "\n".join(parts)


def pulse_as_json(pulse: Pulse) -> dict[str, object]:
    status = pulse.status
    return {
        "address": pulse.address,
        "model_name": pulse.name,
        "model_digest": pulse.digest,
        "rtt_seconds": list(pulse.rtt_seconds),
        "clock_offset_seconds": pulse.clock_offset_seconds,
        "protocol": status.protocol,
        "sessions": status.sessions,
        "kv_tokens_free": status.kv_tokens_free,
        "steps_pushed": status.steps_pushed,
        "steps_relayed": status.steps_relayed,
        "steps_answered": status.steps_answered,
        "rebuilt_tokens": status.rebuilt_tokens,
        "replay_bytes": status.replay_bytes,
    }


def describe_account(account: Account) -> str:
    """Speed, chain and repairs of a reply."""
    reply, chain = account.reply, account.chain
    lines = [
        f"{len(reply.token_ids)} tokens in {reply.seconds:.1f} s: {reply.tokens_per_second:.1f} tokens/s, "
        f"first after {reply.first_token_seconds:.2f} s ({reply.prompt_tokens} prompt tokens)"
    ]
    rows = [
        (
            short_id(hop.peer),
            account.names.get(hop.peer, ""),
            str(hop.blocks),
            milliseconds(hop.network_seconds),
            milliseconds(hop.queue_seconds),
            milliseconds(hop.compute_seconds),
            hop.weights.value,
        )
        for hop in chain.hops
    ]
    if rows:
        rows.append(("client", "", "", milliseconds(chain.return_seconds), "", "", ""))
        lines.append(table(("chain", "name", "blocks", "way ms", "queue ms", "compute ms", "weights"), rows))
        lines.append(f"{milliseconds(chain.step_seconds)} ms per step, mean of the last {chain.steps}")
    lines += _unproven(chain.gap_seconds)
    lines.append(f"steps passed on: {account.steps.pushed} pushed, {account.steps.relayed} relayed through clients")
    lines += [f"peers held {event.detail} of the prompt already" for event in account.events if event.kind == "adopted"]
    lines += [f"repair: {event.kind} {event.detail}".rstrip() for event in account.repairs] or ["no repairs"]
    return "\n".join(lines)


def account_as_json(account: Account) -> dict[str, object]:
    reply, chain = account.reply, account.chain
    return {
        "text": reply.text,
        "token_ids": list(reply.token_ids),
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": len(reply.token_ids),
        "seconds": reply.seconds,
        "first_token_seconds": reply.first_token_seconds,
        "tokens_per_second": reply.tokens_per_second,
        "chain": [
            {
                "peer_id": hop.peer,
                "name": account.names.get(hop.peer, ""),
                "blocks": [hop.blocks.start, hop.blocks.stop],
                "network_seconds": hop.network_seconds,
                "queue_seconds": hop.queue_seconds,
                "compute_seconds": hop.compute_seconds,
                "weights": hop.weights.value,
            }
            for hop in chain.hops
        ],
        "return_seconds": chain.return_seconds,
        "step_seconds": chain.step_seconds,
        "exact": chain.exact,
        "gap_seconds": _finite(chain.gap_seconds),
        "steps_pushed": account.steps.pushed,
        "steps_relayed": account.steps.relayed,
        "events": [{"kind": event.kind, "peer_id": event.peer, "detail": event.detail} for event in account.events],
    }
