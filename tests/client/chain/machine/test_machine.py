"""The chain's machine alone: peers are played by hand, time is a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from blockswarm.client.chain.machine import events as ev
from blockswarm.client.chain.machine.phases import Phase
from blockswarm.proto.errors import (
    BadActivations,
    DeadlineExceeded,
    GiveUp,
    NoChainError,
    PeerBusy,
    PeerUnavailable,
    RetryElsewhere,
    SwarmError,
    UsageError,
)
from blockswarm.proto.wire.frames import HopTiming, Rebuild, WireStep
from blockswarm.proto.wire.steps import RowSlice
from blockswarm.routing.swarm import BlockRange, PeerId
from support.played_chain import THIRDS, TIMING, Chain, all_of, choice, last, lose, running


def test_steps_follow_the_opening_without_waiting_for_it() -> None:
    chain = Chain()
    actions = chain.choose(chain.begin(), *map(choice, "abc", THIRDS))
    assert [action.choice.peer for action in all_of(actions, ev.Open)] == ["a", "b", "c"]
    assert last(actions, ev.Send).hop == chain.opened["a"]


def test_a_step_that_comes_back_while_a_gap_is_filled_goes_to_no_other_peer() -> None:
    """Through the client every output passes here: without its successor it must not reach the one after that."""
    chain = running()
    step = last(chain.begin(), ev.Send).step
    lose(chain, "b")
    assert not all_of(chain.answer("a", step), ev.Send)


def test_the_output_of_a_middle_peer_is_no_answer_when_the_last_is_gone() -> None:
    chain = running()
    step = last(chain.begin(), ev.Send).step
    lose(chain, "c")
    assert not all_of(chain.answer("b", step), ev.Done)


def test_an_answer_of_a_hop_that_was_given_up_is_dropped() -> None:
    """Taken, it would end an operation whose steps the replacement never sees, and the next one waits for ever."""
    chain = running()
    step = last(chain.begin(), ev.Send).step
    gone = chain.opened["c"]
    actions = lose(chain, "c")
    connecting = chain.choose(actions, choice("d", THIRDS[2]))
    assert not all_of(chain.feed(ev.Answered(gone, step)), ev.Done)
    rebuilding = chain.confirm(connecting, step.seq)
    assert last(rebuilding, ev.Replay).target == chain.opened["d"]
    sent = chain.feed(ev.Rebuilt(chain.opened["d"], chain.machine.epoch))
    assert last(sent, ev.Send).step.seq == step.seq
    assert last(chain.answer_sent(sent, "d"), ev.Done).operation.first_seq == step.seq


def test_an_answer_in_hand_does_not_spare_the_replacement_its_steps() -> None:
    """Two steps, one answered: both are sent again, or the replacement waits for the first."""
    chain = running()
    sent = chain.begin(RowSlice(0, 2, 200, 2))
    steps = [action.step for action in all_of(sent, ev.Send)]
    assert len(steps) == 2
    chain.answer("c", steps[0])
    actions = chain.confirm(chain.choose(lose(chain, "b"), choice("d", THIRDS[1])), steps[1].seq)
    again = chain.feed(ev.Rebuilt(chain.opened["d"], chain.machine.epoch))
    assert all_of(actions, ev.Replay)
    assert [action.step.seq for action in all_of(again, ev.Send)] == [step.seq for step in steps]


def test_silence_of_one_peer_costs_two_short_waits_and_only_its_own_place() -> None:
    chain = running()
    chain.begin()
    asked_at = chain.now
    probes = all_of(chain.late(), ev.Probe)
    assert len(probes) == 3
    for name in "ac":
        chain.feed(ev.Probed(chain.opened[name], probes[0].nonce, 3, 2))
    actions = chain.late()
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["b"]
    assert chain.now - asked_at < 4


def test_when_everybody_is_silent_nobody_is_banned_until_some_node_answers() -> None:
    chain = running()
    chain.begin()
    chain.late()
    assert all_of(chain.late(), ev.AskAnybody)
    for _ in range(20):
        assert not all_of(chain.feed(ev.NetworkAway()), ev.Ban)
        assert all_of(chain.late(), ev.AskAnybody)
    actions = chain.feed(ev.NetworkBack())
    assert not all_of(actions, ev.Ban)
    nonce = last(actions, ev.Probe).nonce
    for name in "abc":
        chain.feed(ev.Probed(chain.opened[name], nonce, 3, 3))
    assert chain.machine.phase is Phase.RUNNING


def test_a_network_that_stays_away_ends_the_session_in_words_when_patience_is_over() -> None:
    chain = running()
    chain.begin()
    chain.late()
    actions: list[ev.Action] = []
    while not all_of(actions, ev.Fail):
        chain.late()
        actions = chain.feed(ev.NetworkAway())
    assert chain.now == pytest.approx(TIMING.patience_seconds, abs=5.0)
    error = last(actions, ev.Fail).error
    assert (type(error), str(error)) == (PeerUnavailable, "no node of the swarm answers any more")
    assert "this machine's network" in error.hint


def test_streams_that_broke_while_the_network_was_away_are_opened_again_at_the_same_peers() -> None:
    chain = running()
    step = last(chain.begin(), ev.Send).step
    for name in "abc":
        lose(chain, name)
    assert chain.machine.phase is not Phase.AWAY, "the first one was lost alone"
    chain = running()
    step = last(chain.begin(), ev.Send).step
    chain.late()
    chain.late()
    for name in "abc":
        lose(chain, name)
    chain.feed(ev.NetworkAway())
    chain.late()
    actions = chain.feed(ev.NetworkBack())
    assert not all_of(actions, ev.Ban)
    assert last(actions, ev.Pardon).peers == {"a", "b", "c"}
    rebuilding = chain.choose(chain.feed(ev.Looked(None)), *map(choice, "abc", THIRDS))
    assert last(rebuilding, ev.Replay).source is None
    sent = chain.feed(ev.Rebuilt(chain.opened["c"], chain.machine.epoch))
    assert last(sent, ev.Send).step.seq == step.seq


def test_a_failed_look_is_no_failure_while_patience_lasts() -> None:
    chain = running()
    chain.begin()
    actions = lose(chain, "b")
    error = NoChainError((2, 3))
    while not all_of(actions, ev.Fail):
        if all_of(actions, ev.Choose):
            actions = chain.feed(ev.NotChosen(last(actions, ev.Choose).number, error))
        elif all_of(actions, ev.Look):
            actions = chain.feed(ev.Looked(PeerUnavailable("nobody answers")))
        else:
            actions = chain.late()
    assert last(actions, ev.Fail).error is error
    assert chain.now == pytest.approx(TIMING.patience_seconds, abs=1.0)


def replaced(chain: Chain, actions: Sequence[ev.Action], name: str, blocks: BlockRange) -> None:
    """A new peer takes the place of the one that was lost in step 3."""
    chain.confirm(chain.choose(actions, choice(name, blocks)), 3)
    chain.feed(ev.Opened(chain.opened[name], 8))
    chain.feed(ev.Rebuilt(chain.opened[name], chain.machine.epoch))


@pytest.mark.parametrize(
    ("name", "blocks", "error"),
    [("b", THIRDS[1], UsageError("the model has 128 positions")), ("a", THIRDS[0], BadActivations("not finite"))],
)
def test_the_input_is_blamed_when_two_peers_say_so_and_both_are_pardoned(
    name: str, blocks: BlockRange, error: SwarmError
) -> None:
    chain = running()
    chain.begin()
    actions = lose(chain, name, error)
    assert not all_of(actions, ev.Fail), "one peer may lie"
    replaced(chain, actions, "d", blocks)
    actions = lose(chain, "d", error)
    assert isinstance(last(actions, ev.Fail).error, UsageError)
    assert last(actions, ev.Pardon).peers == {name, "d"}


def end_for_lack_of_others(chain: Chain, error: SwarmError, name: str = "b") -> list[ev.Action]:
    """A peer says that the input cannot be computed, and no other peer has its blocks."""
    actions = lose(chain, name, error)
    for _ in range(2):
        actions = chain.feed(ev.NotChosen(last(actions, ev.Choose).number, NoChainError((2, 3))))
    return actions


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("b", UsageError("the model has 128 positions"), "the model has 128 positions"),
        ("a", BadActivations("not finite"), "the input of the model is not finite: not finite"),
    ],
)
def test_the_input_is_blamed_where_nobody_else_can_be_asked(name: str, error: SwarmError, message: str) -> None:
    """The peer that said so is pardoned: it is the only one for the next request, too."""
    chain = running()
    chain.begin()
    actions = end_for_lack_of_others(chain, error, name)
    ending = last(actions, ev.Fail).error
    assert (type(ending), str(ending)) == (UsageError, message)
    assert last(actions, ev.Pardon).peers == {name}


def test_a_peer_that_is_gone_is_not_pardoned_with_the_one_that_blames_the_input() -> None:
    chain = running()
    chain.begin()
    replaced(chain, lose(chain, "c"), "d", THIRDS[2])
    actions = end_for_lack_of_others(chain, UsageError("the model has 128 positions"))
    assert last(actions, ev.Pardon).peers == {"b"}


def test_only_what_the_first_peer_calls_not_finite_is_the_input() -> None:
    """A later one is sent what a peer computed: where nobody replaces that one, the session waits for a peer."""
    chain = running()
    chain.begin()
    assert not all_of(end_for_lack_of_others(chain, BadActivations("not finite"), "c"), ev.Fail)


def test_a_peer_that_blames_one_predecessor_after_the_other_is_left_itself() -> None:
    chain = running()
    chain.begin()
    actions = lose(chain, "c", BadActivations("not finite"))
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["b"]
    connecting = chain.choose(actions, choice("d", THIRDS[1]), choice("c", THIRDS[2]))
    chain.confirm(connecting, 3)
    chain.feed(ev.Rebuilt(chain.opened["c"], chain.machine.epoch))
    actions = lose(chain, "c", BadActivations("not finite"))
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["c"]
    assert all_of(actions, ev.Pardon)[0].peers == {"b"}


def test_replacements_are_asked_whether_they_answer_and_first_peers_are_not() -> None:
    chain = Chain()
    assert not last(chain.begin(), ev.Choose).check
    chain = running()
    chain.begin()
    assert last(lose(chain, "b"), ev.Choose).check


def test_two_peers_that_fail_in_one_step_blame_the_input() -> None:
    chain = running()
    chain.begin()
    actions = lose(chain, "b", RetryElsewhere("the peer failed internally"))
    connecting = chain.choose(actions, choice("d", THIRDS[1]))
    chain.confirm(connecting, 3)
    chain.feed(ev.Rebuilt(chain.opened["d"], chain.machine.epoch))
    actions = lose(chain, "d", RetryElsewhere("the peer failed internally"))
    assert isinstance(last(actions, ev.Fail).error, GiveUp)


def test_peers_of_different_blocks_that_fail_in_one_step_are_both_replaced() -> None:
    """Two defects are no proof against the input."""
    chain = running()
    chain.begin()
    connecting = chain.choose(lose(chain, "b", RetryElsewhere("failed")), choice("d", THIRDS[1]))
    chain.confirm(connecting, 3)
    chain.feed(ev.Rebuilt(chain.opened["d"], chain.machine.epoch))
    actions = lose(chain, "c", RetryElsewhere("failed"))
    assert not all_of(actions, ev.Fail)
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["c"]


def test_values_that_are_not_finite_are_the_fault_of_the_peer_before() -> None:
    chain = running()
    chain.begin()
    actions = lose(chain, "c", BadActivations("the input is not finite"))
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["b"]
    assert last(actions, ev.Choose).kept == (("a", THIRDS[0]),)


def test_an_answer_with_the_mark_of_a_rebuild_costs_the_peer_its_place() -> None:
    chain = running()
    step = last(chain.begin(), ev.Send).step
    mark = Rebuild(PeerId("c"), 1, permuted=False)
    forged = WireStep(step.epoch, step.seq, step.plan, b"x", 0, 1.0, rebuild=mark)
    actions = chain.answer("c", forged)
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["c"]


def test_a_peer_that_answers_just_in_time_is_left_if_another_is_faster() -> None:
    """It cannot raise the time that it is given: ten tokens cost seconds, not minutes."""
    chain = running()
    lost, actions = 0.0, []
    for _ in range(20):
        actions = chain.begin()
        if all_of(actions, ev.Choose):
            break
        wait = 0.9 * (chain.machine.wake_at - chain.now)
        assert wait < TIMING.late_seconds + TIMING.late_factor * TIMING.max_slowness * 0.01
        chain.now += wait
        lost += wait
        chain.answer_sent(actions, seconds=wait)
    assert last(actions, ev.Choose).excluded == {"b"}, "the slow hop is to be replaced"
    assert lost < 10


def steps_until_a_choice(chain: Chain, seconds: float, most: int = 100) -> tuple[int, list[ev.Action]]:
    """Steps of one token in which b takes `seconds`, until the machine looks for another peer; and that choice."""
    for number in range(most):
        actions = chain.begin()
        if all_of(actions, ev.Choose):
            return number, actions
        chain.now += seconds
        chain.answer_sent(actions, seconds=seconds)
    pytest.fail("nothing was chosen")


def test_a_hop_that_takes_twice_its_announced_time_for_a_while_is_left() -> None:
    """Each step costs too little to be late, and the time that is lost is little, too."""
    chain = running()
    steps, actions = steps_until_a_choice(chain, 0.06)
    assert steps == TIMING.slow_steps
    assert last(actions, ev.Choose).excluded == {"b"}
    actions = chain.choose(actions, choice("d", THIRDS[1]))
    assert all_of(actions, ev.Open), "it is replaced while it works"
    assert chain.now < 0.07 * TIMING.slow_steps


def test_a_hop_that_is_slow_now_and_then_or_by_little_is_not_left() -> None:
    chain = running()
    for number in range(5 * TIMING.slow_steps):
        actions = chain.begin()
        assert not all_of(actions, ev.Choose)
        seconds = 0.039 if number % TIMING.slow_steps else 0.0
        chain.now += seconds
        chain.answer_sent(actions, seconds=seconds if number % 2 else 10 * seconds)


def replay_to(chain: Chain, name: str, actions: Sequence[ev.Action]) -> list[ev.Action]:
    """All take their new neighbours, and the new one is rebuilt; what is sent then."""
    chain.confirm(actions, chain.next_seq - 2)
    return chain.feed(ev.Rebuilt(chain.opened[name], chain.machine.epoch))


def test_a_session_does_not_move_about_where_all_are_slow() -> None:
    chain = running()
    _, actions = steps_until_a_choice(chain, 0.06)
    chain.choose(actions, choice("d", THIRDS[1]))
    chain.feed(ev.Opened(chain.opened["d"], 8))
    chain.answer_sent(actions)
    chain.now += TIMING.handover_seconds
    chain.answer_sent(replay_to(chain, "d", chain.begin()))
    assert "d" in dict(chain.machine.layout)
    # After that time a better chain is looked for, too.
    chain.feed(ev.NotChosen(last(chain.log, ev.Choose).number, NoChainError(tuple(THIRDS[1]))))
    count = 0
    while count < 3 * TIMING.slow_steps:
        actions = chain.begin()
        if all_of(actions, ev.Choose):
            break
        chain.now += 0.06
        answers = [action for action in actions if isinstance(action, ev.Send)]
        timings = (HopTiming(PeerId("d"), 0.0, 0.0, 0.06),)
        for sent in answers:
            chain.answer("c", replace(sent.step, timings=timings))
        count += 1
    assert count == 2 * TIMING.slow_steps


def test_a_long_session_moves_to_a_much_better_chain() -> None:
    chain = running()
    chain.facts.of_chains = {frozenset("b"): 0.02, frozenset("abc"): 0.03, frozenset("adc"): 0.01}
    chain.now += TIMING.better_seconds
    actions = chain.begin()
    assert last(actions, ev.Choose).excluded == {"b"}, "it should take longest"
    actions = chain.choose(actions, choice("d", THIRDS[1]))
    assert all_of(actions, ev.Open), "it is replaced while it works"


@pytest.mark.parametrize(("seconds", "wait_seconds"), [(0.025, 0.0), (0.01, 1.0)])
def test_a_session_does_not_move_for_little_nor_to_wait(seconds: float, wait_seconds: float) -> None:
    chain = running()
    chain.facts.of_chains = {frozenset("b"): 0.02, frozenset("abc"): 0.03, frozenset("adc"): seconds}
    chain.now += TIMING.better_seconds
    actions = chain.choose(chain.begin(), choice("d", THIRDS[1], wait_seconds))
    chain.answer_sent(actions)
    assert "b" in dict(chain.machine.layout)
    assert all_of(chain.begin(), ev.Send), "nor does it ask all the time"


def test_a_slow_peer_stays_where_nobody_is_faster() -> None:
    chain = running()
    for _ in range(8):
        actions = chain.begin()
        if all_of(actions, ev.Choose):
            chain.facts.seconds = 10.0
            slow = next(iter(last(actions, ev.Choose).excluded))
            blocks = dict(chain.machine.layout)[slow]
            assert all_of(actions, ev.Send), "the operation goes on as it was"
            assert not all_of(chain.choose(actions, choice("d", blocks)), ev.Open)
            return
        chain.now += 1.3
        chain.answer_sent(actions, seconds=1.3)
    pytest.fail("the hop was never found to be slow")


def test_several_operations_may_be_under_way_and_are_done_in_order() -> None:
    chain = running()
    first, second = chain.begin(), chain.begin()
    steps = [last(actions, ev.Send).step for actions in (first, second)]
    assert not all_of(chain.answer("c", steps[1]), ev.Done)
    done = all_of(chain.answer("c", steps[0]), ev.Done)
    assert [action.operation.first_seq for action in done] == [steps[0].seq, steps[1].seq]


def test_a_buffer_that_a_later_operation_has_rewritten_is_no_source() -> None:
    """The replacement needs the tokens before the first operation; the second has truncated them away."""
    chain = running(operations=4)
    chain.begin(RowSlice(0, 5, 1, 1))
    chain.begin(RowSlice(0, 2, 1, 1))
    applied = chain.next_seq - 1
    actions = chain.confirm(chain.choose(lose(chain, "b"), choice("d", THIRDS[1])), applied)
    replay = last(actions, ev.Replay)
    assert (replay.source, replay.lengths, replay.mark.permuted) == (None, (5,), False)


@pytest.mark.parametrize(("source", "lengths"), [(None, (3,)), ((0,), (5,))])
def test_a_replacement_does_not_get_the_tokens_that_the_next_step_drops(
    source: tuple[int, ...] | None, lengths: tuple[int, ...]
) -> None:
    """They may be guesses that the lost peer could not compute: its replacement cannot either, and was blamed."""
    chain = running(operations=4)
    lose(chain, "b")
    choosing = chain.begin(RowSlice(0, 3, 1, 1), source=source)
    actions = chain.confirm(chain.choose(choosing, choice("d", THIRDS[1])), applied_seq=5)
    replay = last(actions, ev.Replay)
    assert (replay.source, replay.lengths, replay.mark.permuted) == (chain.opened["a"], lengths, False)


def test_room_is_taken_in_the_order_of_ids_and_given_back_with_the_lease() -> None:
    chain = Chain()
    actions = chain.choose(chain.begin(), choice("b", THIRDS[0]), choice("c", THIRDS[1], 5.0), choice("a", THIRDS[2]))
    assert [action.choice.peer for action in all_of(actions, ev.Open)] == ["a"]
    actions = chain.feed(ev.Opened(chain.opened["a"], 8))
    assert [action.choice.peer for action in all_of(actions, ev.Open)] == ["b"]
    chain.feed(ev.Queued(chain.opened["b"], 3, 20.0))
    assert [tell.event.kind for tell in all_of(chain.log, ev.Tell)] == ["queued"]
    chain.now = TIMING.lease_seconds
    actions = lose(chain, "b", PeerBusy(1.0))
    assert {leave.hop for leave in all_of(actions, ev.Leave)} == {chain.opened["a"], chain.opened["b"]}


def test_a_session_is_told_when_the_whole_chain_is_expected_to_have_room() -> None:
    """Peer a has room soon; c, which is taken after it, was expected to have some after 30 seconds."""
    chain = Chain()
    chain.choose(
        chain.begin(),
        *(choice(name, third, wait) for name, third, wait in zip("abc", THIRDS, (5.0, 0.0, 30.0), strict=True)),
    )
    chain.feed(ev.Queued(chain.opened["a"], 2, 3.0))
    chain.now += 10.0
    chain.feed(ev.Queued(chain.opened["a"], 1, 2.0))
    chain.feed(ev.Queued(chain.opened["a"], 1, 25.0))
    told = [tell.event.detail for tell in all_of(chain.log, ev.Tell)]
    assert told == ["place 2, about 30 s", "place 1, about 20 s", "place 1, about 25 s"]


@pytest.mark.parametrize(("stream", "held"), [("float32", 64), ("bfloat16", 0)])
def test_what_peers_hold_behind_a_peer_of_another_stream_is_not_begun_with(stream: str, held: int) -> None:
    chain = Chain()
    chain.choose(chain.feed(ev.Prepare(1)), *map(choice, "abc", THIRDS))
    for name in "bc":
        chain.feed(ev.Opened(chain.opened[name], 8, (64,)))
    actions = chain.choose(lose(chain, "a"), replace(choice("d", THIRDS[0]), stream_format=stream))
    reroutes = all_of(actions, ev.Reroute)
    assert [reroute.neighbours.stream_before for reroute in reroutes] == [stream, "float32"]
    assert [reroute.forget_prefixes for reroute in reroutes] == [held == 0] * 2
    chain.confirm(actions, 0)
    chain.feed(ev.Opened(chain.opened["d"], 8, (64,)))
    assert last(chain.log, ev.Ready).held_tokens == (held,)


def test_a_session_that_failed_still_frees_its_peers_when_it_is_closed() -> None:
    chain = running()
    chain.begin()
    end_for_lack_of_others(chain, UsageError("no"))
    chain.feed(ev.Close())
    assert {leave.hop for leave in all_of(chain.log, ev.Leave)} == {chain.opened[name] for name in "abc"}


def test_a_peer_that_ends_a_finished_session_first_is_not_to_blame() -> None:
    """A step that nobody waits for is under way, and would be repaired: the peer banned, another one opened."""
    chain = running()
    chain.begin()
    chain.feed(ev.Finish())
    assert not lose(chain, "b")
    assert chain.machine.wake_at == math.inf
    assert len(all_of(chain.feed(ev.Close()), ev.Leave)) == 3


def test_a_replacement_that_does_not_open_in_time_is_given_up() -> None:
    chain = running()
    chain.begin()
    chain.confirm(chain.choose(lose(chain, "b"), choice("d", THIRDS[1])), 2)
    actions = chain.late()
    assert chain.now == pytest.approx(TIMING.open_seconds)
    assert [type(ban.error) for ban in all_of(actions, ev.Ban)] == [DeadlineExceeded]


def test_a_link_that_swallows_is_relayed_once_and_then_the_peer_is_left() -> None:
    """Relayed again and again the session would neither go on nor end."""
    chain = running()
    seq = last(chain.begin(), ev.Send).step.seq

    def swallowed() -> list[ev.Action]:
        nonce = last(chain.late(), ev.Probe).nonce
        actions: list[ev.Action] = []
        for name, (received, applied) in {"a": (seq, seq), "b": (seq, seq), "c": (0, seq - 1)}.items():
            actions += chain.feed(ev.Probed(chain.opened[name], nonce, received, applied))
        return actions

    first = swallowed()
    assert [action.neighbours.relay for action in all_of(first, ev.Reroute)] == [False, True, False]
    chain.confirm(first, seq)
    assert [ban.peer for ban in all_of(swallowed(), ev.Ban)] == ["b"]


@pytest.mark.parametrize(("passes_on", "left"), [(True, "d"), (False, "b")])
def test_a_link_that_swallows_a_replay_is_relayed_once_and_then_a_peer_is_left(passes_on: bool, left: str) -> None:
    """Blamed at once, the only peer that has the blocks would be opened again and again behind the same dead link.

    A peer that sends steps of another session in place of a replay had all its successors blamed, one after the other.
    """
    chain = running()
    step = last(chain.begin(), ev.Send).step
    actions = chain.confirm(chain.choose(lose(chain, "c"), choice("d", THIRDS[2])), 2)
    chain.feed(ev.Opened(chain.opened["d"], 8))
    assert last(actions, ev.Replay).target == chain.opened["d"]
    chain.late()
    rerouted = chain.late()
    assert [action.neighbours.relay for action in all_of(rerouted, ev.Reroute)] == [False, True, False]
    assert last(chain.confirm(rerouted, 2), ev.Replay).target == chain.opened["d"]
    passed = chain.answer("b", replace(step, epoch=chain.machine.epoch if passes_on else 1))
    assert bool(all_of(passed, ev.Send)) == passes_on
    actions = chain.late()
    while not all_of(actions, ev.Ban):
        assert chain.machine.phase is Phase.REBUILDING
        actions = chain.late()
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == [left]
