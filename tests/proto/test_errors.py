"""Errors cross the wire as a number and one line, and mean the right thing on the other side."""

from __future__ import annotations

import pytest
from blockswarm.proto import errors
from blockswarm.proto.errors import (
    MAX_WIRE_MESSAGE_CHARS,
    WIRE_CLASSES,
    AuthenticationError,
    ClockSkew,
    DeadlineExceeded,
    GiveUp,
    LocalProtocolError,
    NoChainError,
    PeerBusy,
    PeerUnavailable,
    ProtocolError,
    RemoteProtocolError,
    RetryElsewhere,
    SwarmError,
    UsageError,
    describe_clocks,
    from_grpc_status,
    from_wire,
    to_wire,
)
from hypothesis import given
from hypothesis import strategies as st


def all_classes(root: type[SwarmError] = SwarmError) -> list[type[SwarmError]]:
    """The tree as this module draws it; other modules may refine a class for their own use."""
    children = (child for child in root.__subclasses__() if child.__module__ == SwarmError.__module__)
    return [root, *(found for child in children for found in all_classes(child))]


def make(error_class: type[SwarmError]) -> SwarmError:
    if error_class is PeerBusy:
        return PeerBusy(2.5)
    if error_class is NoChainError:
        return NoChainError([3, 4, 7])
    return error_class("what happened")


def test_every_class_has_its_own_number_code_and_a_hint() -> None:
    classes = all_classes()
    assert sorted(WIRE_CLASSES.values(), key=repr) == sorted(classes, key=repr)
    assert len({error_class.code for error_class in classes}) == len(classes)
    assert all(make(error_class).hint for error_class in classes)


def test_every_class_says_what_the_caller_can_do() -> None:
    for error_class in all_classes():
        branches = [UsageError, RetryElsewhere, GiveUp, ProtocolError]
        assert error_class is SwarmError or sum(issubclass(error_class, branch) for branch in branches) == 1


@pytest.mark.parametrize("error_class", all_classes())
def test_round_trip(error_class: type[SwarmError]) -> None:
    sent = make(error_class)
    received = from_wire(*to_wire(sent))
    flipped = {RemoteProtocolError: LocalProtocolError, LocalProtocolError: RemoteProtocolError}
    assert type(received) is flipped.get(error_class, error_class)
    assert str(received) == str(sent)


def test_values_travel() -> None:
    busy = from_wire(*to_wire(PeerBusy(2.5, "full")))
    assert isinstance(busy, PeerBusy)
    assert busy.retry_after_seconds == 2.5
    missing = from_wire(*to_wire(NoChainError(range(5, 300))))
    assert isinstance(missing, NoChainError)
    assert missing.missing_blocks[:200] == tuple(range(5, 205))
    assert "blocks 5:300" in str(missing)


def test_a_private_subclass_travels_as_its_nearest_public_class() -> None:
    class Special(PeerUnavailable):
        pass

    try:
        assert type(from_wire(*to_wire(Special("gone")))) is PeerUnavailable
    finally:
        del Special


def test_a_defect_tells_no_internals() -> None:
    number, text = to_wire(KeyError("/home/someone/secret"))
    assert "secret" not in text
    assert isinstance(from_wire(number, text), RetryElsewhere)


@given(number=st.integers(0, 2**32 - 1) | st.sampled_from(sorted(WIRE_CLASSES)), message=st.text(max_size=3000))
def test_hostile_wire_errors_give_one_bounded_printable_line(number: int, message: str) -> None:
    error = from_wire(number, message)
    assert isinstance(error, SwarmError)
    assert str(error).isprintable()
    assert 0 < len(str(error)) <= MAX_WIRE_MESSAGE_CHARS
    if isinstance(error, PeerBusy):
        assert 0 <= error.retry_after_seconds <= 3600


@given(message=st.text(max_size=3000), blocks=st.lists(st.integers(0, 10**5), max_size=2000))
def test_texts_on_the_wire_are_bounded(message: str, blocks: list[int]) -> None:
    for error in (UsageError(message), NoChainError(blocks, message or None), PeerBusy(1e6, message or None)):
        assert len(to_wire(error)[1]) <= MAX_WIRE_MESSAGE_CHARS


@pytest.mark.parametrize(
    ("name", "details", "expected"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", PeerUnavailable),
        ("UNAVAILABLE", "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", AuthenticationError),
        ("UNAVAILABLE", "handshake failed: CERTIFICATE_VERIFY_FAILED: certificate has expired", ClockSkew),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (9 vs. 4)", RemoteProtocolError),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 4)", LocalProtocolError),
        ("RESOURCE_EXHAUSTED", "", PeerBusy),
        ("NEVER_HEARD_OF", "", RetryElsewhere),
    ],
)
def test_grpc_statuses(name: str, details: str, expected: type[SwarmError]) -> None:
    assert type(from_grpc_status(name, details)) is expected


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (-31.4, "mine is 31 s behind yours"),
        (600.0, "mine is 600 s ahead of yours"),
        (-97200.0, "mine is 27.0 h (97200 s) behind yours"),
        (864000.0, "mine is 10.0 days (864000 s) ahead of yours"),
        (float("nan"), "mine is nan s ahead of yours"),
        (float("-inf"), "mine is inf days (inf s) behind yours"),
    ],
)
def test_a_difference_of_clocks_is_told_with_its_size(ahead: float, text: str) -> None:
    assert describe_clocks("mine", "yours", ahead) == text


@pytest.mark.parametrize(
    ("blocks", "text"), [((3,), "blocks 3:4"), ((3, 4, 7), "blocks 3:5, 7:8"), ((), "a whole chain of blocks")]
)
def test_blocks_are_described_as_half_open_ranges(blocks: tuple[int, ...], text: str) -> None:
    assert errors.describe_blocks(blocks) == text
