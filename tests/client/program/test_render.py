"""The text that commands print holds also where there is nothing to tell, and their JSON has no infinities."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from blockswarm.client.program.render import describe_outlook, describe_peers, outlook_as_json, snapshot_as_json
from blockswarm.client.program.terminal import milliseconds
from blockswarm.client.survey.survey import PeerLine
from blockswarm.routing.outlook import Outlook
from blockswarm.routing.sim.studies.plan import load_snapshot, plan_report
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec

WHOLE = Outlook(
    concurrency=3,
    bound_seconds=0.25,
    scratch_bound_seconds=0.2,
    token_seconds=0.1,
    request_seconds=12.0,
    weakest_block=2,
    weakest_servers=1,
    uncovered=(),
    moves=((PeerId("12D3KooWabcdef"), None, BlockRange(0, 4)),),
)


def test_the_outlook_of_a_whole_swarm() -> None:
    assert describe_outlook(WHOLE).splitlines() == [
        "planned for 3 sessions at once (R)",
        "time of a token now: 100.0 ms",
        "promised with at most 3 sessions at once: no wait, and a token within 250.0 ms (Theorem 2)",
        "the bound if the same peers were placed from scratch: 200.0 ms",
        "time of a request among others: 12000.0 ms",
        "weakest block: 2, with 1 server",
        "claimed moves: 1",
        "  ..abcdef from no blocks to 0:4",
    ]


def test_no_time_is_less_than_nothing_by_rounding() -> None:
    assert milliseconds(-0.00001) == "0.0"
    assert milliseconds(-0.0012) == "-1.2"


def test_where_no_chain_is_complete_no_time_is_told() -> None:
    never = dict.fromkeys(("bound_seconds", "scratch_bound_seconds", "token_seconds", "request_seconds"), math.inf)
    broken = replace(WHOLE, uncovered=(1, 3), moves=(), **never)
    lines = describe_outlook(broken).splitlines()
    assert "time of a token now: none, no chain is complete" in lines
    assert "blocks without a server: 1, 3" in lines
    assert any(line.startswith("promised with at most 3 sessions at once: nothing") for line in lines)
    assert json.loads(json.dumps(outlook_as_json(broken), allow_nan=False))["token_seconds"] is None


def line(peer: str, blocks: BlockRange | None, state: str, answers: bool = True) -> PeerLine:
    rtt, age = (0.12, 20.0) if answers else (None, None)
    return PeerLine(
        PeerId("12D3KooW" + peer), "a name", blocks, state, "bfloat16", 12.34e-3, 300_000, 600_000, rtt,
        "192.0.2.100:31337", age, 12, "unopposed" if answers else "", "cpu, 2 threads", 99,
    )  # fmt: skip


def test_the_table_of_peers_fits_a_terminal_and_counts_tokens() -> None:
    lines = [
        line("aaaaaa", BlockRange(100, 110), "draining"),
        line("bbbbbb", BlockRange(110, 126), "serving", answers=False),
        line("cccccc", None, "joining", answers=False),
        line("dddddd", BlockRange(110, 126), "leaving", answers=False),
    ]
    lines[1] = replace(lines[1], device_class="", tokens_served=None)
    work, said, ways, blocks = describe_peers(126, lines).split("\n\n")
    assert all(len(row) <= 80 for row in work.splitlines())
    assert [row.split()[1:4] for row in work.splitlines()[1:3]] == [
        ["100:110", "draining", "bfloat16"],
        ["110:126", "silent", "bfloat16"],
    ]
    assert work.splitlines()[1].split()[-3:] == ["30000", "60000", "12"], "of each block"
    assert "joining" in work.splitlines()[3]
    assert "leaving" in work.splitlines()[4], "it has said goodbye, and is not expected to answer"
    assert said.splitlines()[1].split() == ["..aaaaaa", "99", "cpu,", "2", "threads"]
    assert said.splitlines()[2] == "..bbbbbb", "it does not say"
    assert "192.0.2.100:31337  a name" in ways
    assert "nobody serves" in blocks


def test_a_snapshot_of_the_swarm_can_be_planned(tmp_path: Path) -> None:
    """`swarm-sim plan` reads what `swarm-client peers --snapshot` prints."""
    cost = ComputeCost(5e-3, prefill_fixed=1e-3, prefill_per_token=1e-4)
    sizes = {"memory_bytes": 8e9, "block_bytes": 4e8, "kv_bytes_per_token": 4096.0}
    specs = [
        PeerSpec(PeerId("a"), BlockRange(0, 6), cost, **sizes),  # type: ignore[arg-type]
        PeerSpec(PeerId("b"), BlockRange(4, 12), cost, max_blocks=8, concurrency=2.6, **sizes),  # type: ignore[arg-type]
    ]
    file = tmp_path / "swarm.json"
    file.write_text(json.dumps(snapshot_as_json(12, {spec.id: (spec, 0.05) for spec in specs})))
    read = load_snapshot(file)
    assert [(peer.id, peer.blocks, peer.max_blocks) for peer in read.swarm.peers] == [
        ("a", BlockRange(0, 6), None),
        ("b", BlockRange(4, 12), 8),
    ]
    assert read.concurrency == 3
    plan = plan_report(read)
    assert plan["placement"].keys() == {"a", "b"}
    assert plan["present_request_seconds"] > 0
