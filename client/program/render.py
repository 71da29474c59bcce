"""The commands' output: text for people, and values for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...proto.errors import error_as_json
from ...routing.swarm import BlockRange, PeerId, PeerSpec, PeerState, short_id
from .terminal import block_map, milliseconds, missing_blocks, table

if TYPE_CHECKING:
    from ...routing.outlook import Outlook
    from ..report import GuessReport
    from ..survey.explain import Explanation, UnusedPeer, WhyUnused
    from ..survey.survey import PeerLine, PredictedChain, Pulse
    from .account import Account


def describe_chain(chain: PredictedChain) -> str:
    """Describe the chain that a request would get, with its predicted times."""
    rows = [
        (
            short_id(hop.peer), hop.name, str(hop.blocks), milliseconds(hop.way_seconds),
            milliseconds(hop.visit_seconds), milliseconds(hop.compute_seconds), hop.weights, hop.address,
        )
        for hop in chain.hops
    ]  # fmt: skip
    rows.append(("client", "", "", milliseconds(chain.return_seconds), "", "", "", ""))
    step = chain.step_seconds
    speed = f"{milliseconds(step)} ms per token, {1 / step:.1f} tokens/s" if step > 0 else "no time per token"
    header = ("peer", "name", "blocks", "way ms", "visit ms", "compute ms", "weights", "address")
    return "\n".join([table(header, rows), f"predicted: {speed}", *_unproven(chain.unproven_seconds)])


def chain_as_json(chain: PredictedChain) -> dict[str, object]:
    hops = [{**asdict(hop), "blocks": [hop.blocks.start, hop.blocks.stop]} for hop in chain.hops]
    return {
        "hops": hops,
        "return_seconds": chain.return_seconds,
        "step_seconds": chain.step_seconds,
        "exact": chain.unproven_seconds == 0,
        "unproven_seconds": _finite(chain.unproven_seconds),
    }


def describe_explanation(told: Explanation) -> str:
    """Describe a chain with its waits for room, the runner-up, and the peers that are not used."""
    lines = [describe_chain(told.chain)]
    waits = [
        f"{short_id(hop.peer)} {wait:.1f} s"
        for hop, wait in zip(told.chain.hops, told.wait_seconds, strict=True)
        if wait > 0
    ]
    lines.append("waits for room: " + (", ".join(waits) or "none"))
    other = told.runner_up
    if other is None:
        lines.append("runner-up: none, there is no chain without these peers")
    else:
        more = milliseconds(other.step_seconds - told.chain.step_seconds)
        way = " -> ".join(f"{short_id(hop.peer)} {hop.blocks}" for hop in other.hops)
        lines.append(f"runner-up: {milliseconds(other.step_seconds)} ms per token ({more} ms more): {way}")
    if told.unused:
        rows = [
            (short_id(peer.peer), peer.name, str(peer.blocks or ""), peer.reason.value, *_more(peer))
            for peer in told.unused
        ]
        header = ("not used", "name", "blocks", "why", "network ms more", "compute ms more")
        lines += ["", table(header, rows)]
        hidden = sum(told.counts.values()) - len(rows)
        if hidden:
            lines.append(f"and {hidden} more; all: {_counted(told.counts)}")
    return "\n".join(lines)


def _more(peer: UnusedPeer) -> tuple[str, str]:
    if peer.network_seconds is None or peer.compute_seconds is None:
        return "", ""
    return milliseconds(peer.network_seconds), milliseconds(peer.compute_seconds)


def _counted(counts: Mapping[WhyUnused, int]) -> str:
    return "; ".join(f"{number} {reason.value}" for reason, number in counts.items())


def explanation_as_json(told: Explanation) -> dict[str, object]:
    chain = chain_as_json(told.chain)
    hops = zip(chain.pop("hops"), told.wait_seconds, strict=True)  # type: ignore[call-overload]
    return {
        **chain,
        "hops": [{**hop, "wait_seconds": wait} for hop, wait in hops],
        "runner_up": chain_as_json(told.runner_up) if told.runner_up is not None else None,
        "not_used": [
            {
                "peer": peer.peer,
                "name": peer.name,
                "blocks": [peer.blocks.start, peer.blocks.stop] if peer.blocks is not None else None,
                "reason": peer.reason.name.lower(),
                "network_seconds_more": peer.network_seconds,
                "compute_seconds_more": peer.compute_seconds,
            }
            for peer in told.unused
        ],
        "not_used_counts": {reason.name.lower(): number for reason, number in told.counts.items()},
    }


def _finite(seconds: float) -> float | None:
    """JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def _unproven(unproven_seconds: float) -> list[str]:
    """Return a line that says so if a chain is not proven to be the best."""
    if unproven_seconds == 0:
        return []
    sooner = f"up to {unproven_seconds:.2f} s sooner" if math.isfinite(unproven_seconds) else "sooner"
    return [f"not proven to be the best chain: another one may be done {sooner}"]


def describe_peers(num_blocks: int, lines: Sequence[PeerLine]) -> str:
    """Describe peers in tables (work in 80 columns, their own claims, how they are reached) and a map of blocks."""
    header = ("peer", "blocks", "state", "format", "ms/block", "KV free", "KV total", "sessions")
    work = [
        (
            short_id(line.peer),
            str(line.blocks or ""),
            _state(line),
            line.numeric_format,
            f"{1000 * line.decode_seconds_per_block:.2f}",
            str(_per_block(line, line.kv_tokens_free)),
            str(_per_block(line, line.kv_tokens_total)),
            str(line.sessions),
        )
        for line in lines
    ]
    said = [
        (short_id(line.peer), "" if line.tokens_served is None else str(line.tokens_served), line.device_class)
        for line in lines
    ]
    ways = [
        (
            short_id(line.peer),
            line.weights,
            milliseconds(line.rtt_seconds) if line.rtt_seconds is not None else "",
            f"{line.age_seconds:.0f}" if line.age_seconds is not None else "",
            line.address,
            line.name,
        )
        for line in lines
    ]
    parts = [
        table(header, work) + "\n(KV: tokens of attention cache in each of the peer's blocks)",
        table(("peer", "tokens served", "device"), said) + "\n(as the peers announce it; nobody checks it)",
        table(("peer", "weights", "RTT ms", "record age s", "address", "name"), ways),
        block_map(num_blocks, _serving(lines, short_id)),
    ]
    return "\n\n".join(parts)


def _state(line: PeerLine) -> str:
    """Return the state that a peer announces, or "silent" if it should answer and does not."""
    expected = line.state not in (PeerState.LEAVING.value, PeerState.JOINING.value)
    return "silent" if line.rtt_seconds is None and expected else line.state


def _per_block(line: PeerLine, token_blocks: int) -> int:
    return token_blocks // len(line.blocks or (0,))


def _serving(lines: Sequence[PeerLine], label: Callable[[PeerId], str]) -> list[tuple[str, BlockRange]]:
    return [
        (label(line.peer), line.blocks)
        for line in lines
        if line.blocks is not None and line.state == PeerState.SERVING.value and line.weights not in ("", "doubted")
    ]


def peers_as_json(num_blocks: int, lines: Sequence[PeerLine]) -> dict[str, object]:
    described = [
        {**asdict(line), "blocks": [line.blocks.start, line.blocks.stop] if line.blocks else None} for line in lines
    ]
    missing = missing_blocks(num_blocks, [blocks for _, blocks in _serving(lines, str)])
    return {"num_blocks": num_blocks, "missing_blocks": missing, "peers": described}


def snapshot_as_json(
    num_blocks: int, peers: Mapping[PeerId, tuple[PeerSpec, float]], prompt_tokens: int = 128, new_tokens: int = 128
) -> dict[str, object]:
    """Return the swarm as a file for `swarm-sim plan`, with requests of that length from this client.

    The file has a single block size: the largest that a peer announces.
    """
    specs = [spec for spec, _ in peers.values()]
    return {
        "model": {
            "num_blocks": num_blocks,
            "block_bytes": max(spec.block_bytes for spec in specs),
            "kv_bytes_per_token": max(spec.kv_bytes_per_token for spec in specs),
        },
        "request": {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens},
        "concurrency": max(1, round(sum(spec.concurrency for spec in specs))),
        "peers": [
            {
                "id": spec.id,
                "memory_bytes": spec.memory_bytes,
                "decode_seconds": spec.cost.decode_seconds(),
                "prefill_seconds_per_token": spec.cost.prefill_seconds(prompt_tokens) / prompt_tokens,
                "client_rtt_seconds": [rtt_seconds],
                **({"blocks": str(spec.blocks)} if spec.blocks is not None else {}),
                **({"max_blocks": spec.max_blocks} if spec.max_blocks is not None else {}),
            }
            for spec, rtt_seconds in peers.values()
        ],
    }


def describe_outlook(outlook: Outlook) -> str:
    """Describe what the swarm promises and lacks, a line for each figure."""
    claims = [f"  {short_id(peer)} from {before or 'no blocks'} to {after}" for peer, before, after in outlook.moves]
    uncovered = f"blocks without a server: {', '.join(map(str, outlook.uncovered))}"
    weakest = f"weakest block: {outlook.weakest_block}, with {_times(outlook.weakest_servers, 'server')}"
    promised = _times(outlook.concurrency, "session")
    bound = f"no wait, and a token within {milliseconds(outlook.bound_seconds)} ms (Theorem 2)"
    nothing = "nothing: the peers with room for that many do not have all blocks between them"
    return "\n".join(
        [
            f"planned for {promised} at once (R)",
            f"time of a token now: {_duration(outlook.token_seconds)}",
            f"promised with at most {promised} at once: {bound if math.isfinite(outlook.bound_seconds) else nothing}",
            f"the bound if the same peers were placed from scratch: {_duration(outlook.scratch_bound_seconds)}",
            f"time of a request among others: {_duration(outlook.request_seconds)}",
            uncovered if outlook.uncovered else weakest,
            f"claimed moves: {len(claims) or 'none'}",
            *claims,
        ]
    )


def outlook_as_json(outlook: Outlook) -> dict[str, object]:
    """Return an outlook as JSON: times in seconds, null where there is none."""
    return {
        "R": outlook.concurrency,
        "theorem2_bound_per_token_seconds": _finite(outlook.bound_seconds),
        "theorem2_bound_from_scratch_seconds": _finite(outlook.scratch_bound_seconds),
        "token_seconds": _finite(outlook.token_seconds),
        "request_seconds": _finite(outlook.request_seconds),
        "weakest_block": outlook.weakest_block,
        "weakest_block_servers": outlook.weakest_servers,
        "missing_blocks": list(outlook.uncovered),
        "moves": [
            {"peer": peer, "from": str(before) if before else None, "to": str(after)}
            for peer, before, after in outlook.moves
        ],
    }


def _duration(seconds: float) -> str:
    return f"{milliseconds(seconds)} ms" if math.isfinite(seconds) else "none, no chain is complete"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def describe_pulses(pulses: Sequence[Pulse]) -> str:
    """Describe round trips, clocks and counters, a paragraph per peer."""
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
    """Describe the speed, the chain and the repairs of a reply."""
    reply, chain = account.reply, account.chain
    lines = [
        f"{'' if reply.whole else 'interrupted: ' if reply.interrupted else 'failed: '}"
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
    if account.head == "int8":
        lines.append("the head is rounded to int8 (--head): now and then a token is another one")
    lines += _unproven(chain.unproven_seconds)
    lines += _guess_lines(account.guesses, len(reply.token_ids))
    lines.append(f"steps passed on: {account.steps.pushed} pushed, {account.steps.relayed} relayed through clients")
    lines += [f"peers held {event.detail} of the prompt already" for event in account.events if event.kind == "adopted"]
    lines += [f"repair: {event.kind} {event.detail}".rstrip() for event in account.repairs] or ["no repairs"]
    return "\n".join(lines)


def _guess_lines(guesses: GuessReport, new_tokens: int) -> list[str]:
    """Return lines on the trips of a reply, and on how well guessing ahead did."""
    if not guesses.trips:
        return []
    per_trip = f"{guesses.tokens_per_trip(new_tokens):.1f} tokens per trip"
    trips = f"{_times(guesses.trips, 'trip')} along the chain, {per_trip}"
    if not guesses.guessed:
        return [f"{trips}; nothing was guessed (--guess {guesses.setting})"]
    drafts = [
        f"{each.drafter} guessed {_times(each.guessed, 'token')}, {each.acceptance:.0%} of them right"
        for each in guesses.drafts
    ]
    return [f"{trips}, and {_times(guesses.guess_steps, 'step')} of guesses only", *drafts]


def account_as_json(account: Account) -> dict[str, object]:
    """Describe a reply for programs; `error` is None exactly if it is whole."""
    reply, chain = account.reply, account.chain
    ended = KeyboardInterrupt() if reply.interrupted else reply.error
    return {
        "text": reply.text,
        "token_ids": list(reply.token_ids),
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": len(reply.token_ids),
        "interrupted": reply.interrupted,
        "error": None if ended is None else error_as_json(ended),
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
        "unproven_seconds": _finite(chain.unproven_seconds),
        "head": account.head,
        "guesses": account.guesses.as_json(len(reply.token_ids)),
        "steps_pushed": account.steps.pushed,
        "steps_relayed": account.steps.relayed,
        "events": [{"kind": event.kind, "peer_id": event.peer, "detail": event.detail} for event in account.events],
    }
