"""The account of an answer in headers and last events."""

from __future__ import annotations

import json
from dataclasses import replace

from blockswarm.client.api.trace import MAX_EVENTS, Timings, Trace
from blockswarm.client.config import SessionEvent
from blockswarm.client.report import ChainReport, DraftReport, GuessReport, HopReport
from blockswarm.routing.swarm import BlockRange, PeerId

A, B = PeerId("peerA"), PeerId("peerB")
HOPS = (
    HopReport(A, BlockRange(0, 3), 0.01, 0.002, 0.003, "float32"),
    HopReport(B, BlockRange(3, 6), 0.02, 0.004, 0.005, "int8"),
)
GUESSES = GuessReport("auto", 4, 20, 11, (DraftReport("draft", 8, 6), DraftReport("suffix", 5, 0)), guess_steps=2)
REPORT = ChainReport(((A, BlockRange(0, 3)), (B, BlockRange(3, 6))), HOPS, 0.006, 0.05, 9)


def trace(*events: SessionEvent, tokens: int = 11) -> Trace:
    return Trace(REPORT, events, Timings(queue=0.5, first_token=1.0, total=3.0), tokens, GUESSES)


def test_headers_tell_chain_times_repairs_and_precision() -> None:
    headers = trace(SessionEvent("opened", A), SessionEvent("hop-lost", B, "x")).headers()
    assert headers["x-swarm-chain"] == "peerA[0:3],peerB[3:6]"
    assert headers["x-swarm-repairs"] == "1", "opening is no repair"
    assert headers["x-swarm-precision"] == "float32,int8"
    times = dict(part.split(";dur=") for part in headers["Server-Timing"].split(", "))
    assert (times["queue"], times["first"], times["total"]) == ("500.00", "1000.00", "3000.00")
    assert (times["hop1-network"], times["hop1-queue"], times["hop1-compute"]) == ("20.00", "4.00", "5.00")
    assert (times["return"], times["step"]) == ("6.00", "50.00")


def test_a_rounded_head_is_told_beside_the_chain() -> None:
    told = replace(trace(), head="int8", report=replace(REPORT, hops=HOPS[:1]))
    assert told.headers()["x-swarm-head"] == told.as_json()["head"] == "int8"
    assert told.headers()["x-swarm-precision"] == told.as_json()["precision"] == "float32,int8"
    assert trace().headers()["x-swarm-head"] == "float32"


def test_the_speed_is_that_of_the_tokens_after_the_first() -> None:
    assert trace().tokens_per_second == 5.0
    assert trace(tokens=1).tokens_per_second == 0.0


def test_the_event_tells_no_more_than_it_should() -> None:
    """The detail of an event is text of peers; many repairs are cut, and counted."""
    told = trace(*[SessionEvent("hop-lost", A, "10.0.0.1 said no")] * 100).as_json()
    assert (told["repair_count"], len(told["repairs"])) == (100, MAX_EVENTS)
    assert "10.0.0.1" not in json.dumps(told)
    assert [hop["blocks"] for hop in told["chain"]] == [[0, 3], [3, 6]]


def test_header_and_event_tell_the_same_of_guesses() -> None:
    headers, told = trace().headers(), trace().as_json()["guesses"]
    assert headers["x-swarm-trips"] == "4" == str(told["trips"])
    assert headers["x-swarm-tokens-per-trip"] == "2.75" == str(told["tokens_per_trip"])
    assert headers["x-swarm-guess-steps"] == "2" == str(told["guess_steps"])
    assert headers["x-swarm-guesses"] == "draft=6/8,suffix=0/5"
    assert (told["setting"], told["guessed"], told["right"]) == ("auto", 13, 6)
    assert [(each["name"], each["acceptance"]) for each in told["drafters"]] == [("draft", 0.75), ("suffix", 0.0)]


def test_a_chain_without_an_answer_has_no_times() -> None:
    empty = Trace(ChainReport(((A, BlockRange(0, 6)),)), (), Timings(0, 0, 0), 0, GuessReport())
    assert empty.as_json()["chain"] == [{"peer": A, "blocks": [0, 6]}]
    assert "hop0" not in empty.headers()["Server-Timing"]
    assert (empty.headers()["x-swarm-tokens-per-trip"], empty.headers()["x-swarm-guesses"]) == ("0.00", "")
