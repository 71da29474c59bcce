"""The error tree of the swarm, split by what the caller can do about it.

    SwarmError                    any expected failure; one line, a hint, a stable code
      UsageError                  fix the input: model folder, block range, address, key file, port
      RetryElsewhere              another peer, or the same one later, may do it
        PeerUnavailable           no answer from there
        PeerBusy                  full; `retry_after_seconds` says when to come back
        SessionLost               the peer no longer has the session
        DeadlineExceeded          no answer in time
        PushFailed                a peer cannot reach its successor
        BadActivations            a peer received values that are not finite: the fault is its predecessor's
      GiveUp                      trying again changes nothing
        NoChainError              no peer serves `missing_blocks`
        WrongSwarm                the other side speaks another version of the protocol
        AuthenticationError       a signature, certificate or capability does not hold
          WrongKey                the swarm key is missing, wrong or unusable
        ModelMismatch             the same name, other weights
        ClockSkew                 the clocks disagree
        UnsupportedModel          this family cannot be served; `reason` says why
        OutOfMemory               it does not fit
      ProtocolError               a message that breaks the protocol
        RemoteProtocolError       the other side sent it
        LocalProtocolError        we sent it

On the wire an error is a number and a text (`to_wire`, `from_wire`).  The numbers are part of the protocol: they are
never changed or reused.  This module knows nothing about grpc except the names of its status codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from .wire.timing import LEAF_LIFETIME_SECONDS, MAX_RETRY_AFTER_SECONDS

MAX_WIRE_MESSAGE_CHARS = 1000
"""Sender and receiver cut a text on the wire to this length."""

_MAX_MISSING_BLOCKS = 1000


class SwarmError(Exception):
    """Root of every expected failure: `str(error)` is one line, `hint` says what to do next."""

    code: ClassVar[str] = "error"
    """Stable name for logs, JSON output and tests."""
    default_hint: ClassVar[str] = "Look at the log of the program for details."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint
        self.add_note(f"hint: {self.hint}")  # tracebacks show it


class UsageError(SwarmError):
    code = "usage"
    default_hint = "Correct the command or its input and start again."


class RetryElsewhere(SwarmError):
    code = "retry-elsewhere"
    default_hint = "Use another peer, or try again later."


class PeerUnavailable(RetryElsewhere):
    code = "peer-unavailable"
    default_hint = "Check the address and that the peer is running, or use another peer."


class PeerBusy(RetryElsewhere):
    """The peer is full now; `retry_after_seconds` is its own estimate of when it is not."""

    code = "peer-busy"
    default_hint = "Use another peer, or come back after the time given."

    def __init__(self, retry_after_seconds: float, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or f"the peer is full, come back in {retry_after_seconds:.1f} s", hint=hint)
        self.retry_after_seconds = retry_after_seconds


class SessionLost(RetryElsewhere):
    code = "session-lost"
    default_hint = "Open a new session and replay it; the tokens so far stay valid."


class DeadlineExceeded(RetryElsewhere):
    code = "deadline-exceeded"
    default_hint = "Use another peer, or allow more time."


class PushFailed(RetryElsewhere):
    code = "push-failed"
    default_hint = "Send through the client instead, or choose another successor."


class BadActivations(RetryElsewhere):
    code = "bad-activations"
    default_hint = "Use another peer: the previous one sends values that are not finite."


class GiveUp(SwarmError):
    code = "give-up"
    default_hint = "Trying again will not help; see the message."


class NoChainError(GiveUp):
    """No chain of peers computes every block; `missing_blocks` are those that no peer serves (0-based)."""

    code = "no-chain"
    default_hint = "Start a peer for the missing blocks, or wait until one joins."

    def __init__(self, missing_blocks: Sequence[int], message: str | None = None, *, hint: str | None = None) -> None:
        self.missing_blocks = tuple(sorted(set(missing_blocks)))
        super().__init__(message or f"no peer serves {describe_blocks(self.missing_blocks)}", hint=hint)


class WrongSwarm(GiveUp):
    code = "wrong-swarm"
    default_hint = "All nodes of a swarm need the same version of the protocol; update the older ones."


class AuthenticationError(GiveUp):
    code = "authentication"
    default_hint = "The other side is not the node that it claims to be; check its address and peer id."


class WrongKey(AuthenticationError):
    code = "wrong-key"
    default_hint = "Ask the owner of the private swarm for its key file and pass it."


class ModelMismatch(GiveUp):
    code = "model-mismatch"
    default_hint = "Use exactly the same model files (repository and revision) as the swarm."


class ClockSkew(GiveUp):
    code = "clock-skew"
    default_hint = (
        "One of the two clocks is wrong. If it is this machine's, synchronise it (NTP, for example `timedatectl set-ntp"
        " true`) and start again; otherwise use other peers."
    )


class UnsupportedModel(GiveUp):
    """The model cannot be served; `reason` is the message."""

    code = "unsupported-model"
    default_hint = "Choose a decoder-only model whose family is supported."

    @property
    def reason(self) -> str:
        return str(self)


class OutOfMemory(GiveUp):
    code = "out-of-memory"
    default_hint = "Host fewer blocks, reserve fewer tokens, or free memory on the machine."


class ProtocolError(SwarmError):
    code = "protocol"
    default_hint = "Check that both sides run compatible versions of the software."


class RemoteProtocolError(ProtocolError):
    code = "remote-protocol"


class LocalProtocolError(ProtocolError):
    code = "local-protocol"
    default_hint = "This is a defect of this program, or its version is incompatible with the peer's; update it."


WIRE_CLASSES: Mapping[int, type[SwarmError]] = {
    1: SwarmError,
    2: UsageError,
    10: RetryElsewhere,
    11: PeerUnavailable,
    12: PeerBusy,
    13: SessionLost,
    14: DeadlineExceeded,
    15: PushFailed,
    16: BadActivations,
    20: GiveUp,
    21: NoChainError,
    22: WrongSwarm,
    23: AuthenticationError,
    24: WrongKey,
    25: ModelMismatch,
    26: ClockSkew,
    27: UnsupportedModel,
    28: OutOfMemory,
    30: ProtocolError,
    31: RemoteProtocolError,
    32: LocalProtocolError,
}
"""Number on the wire -> class. 0 means "no error"."""

_WIRE_NUMBERS = {error_class: number for number, error_class in WIRE_CLASSES.items()}

_SEEN_FROM_THE_OTHER_SIDE: Mapping[type[SwarmError], type[SwarmError]] = {
    RemoteProtocolError: LocalProtocolError,
    LocalProtocolError: RemoteProtocolError,
}


def to_wire(error: BaseException) -> tuple[int, str]:
    """The number and the text that report `error` to the other side; the text has at most MAX_WIRE_MESSAGE_CHARS.

    Any error that is not a SwarmError is a defect of ours: the other side learns only that it may try elsewhere.
    """
    if not isinstance(error, SwarmError):
        return _WIRE_NUMBERS[RetryElsewhere], "the peer failed internally"
    known_class = next(base for base in type(error).__mro__ if base in _WIRE_NUMBERS)
    text = one_line(str(error))
    # A value that the receiver needs as a number travels after the last newline; the text itself has no newline.
    if isinstance(error, PeerBusy):
        text += f"\n{error.retry_after_seconds:.3f}"
    elif isinstance(error, NoChainError):
        text = text[: MAX_WIRE_MESSAGE_CHARS // 2]
        text += "\n" + _cut_list(error.missing_blocks, MAX_WIRE_MESSAGE_CHARS - len(text) - 1)
    return _WIRE_NUMBERS[known_class], text


def from_wire(number: int, message: str) -> SwarmError:
    """The error that the other side reported, as seen from here: its RemoteProtocolError is our LocalProtocolError.

    Never raises for hostile input: an unknown number gives a plain SwarmError, texts are cut to one printable line.
    """
    error_class = WIRE_CLASSES.get(number, SwarmError)
    error_class = _SEEN_FROM_THE_OTHER_SIDE.get(error_class, error_class)
    text, _, value = message[: 2 * MAX_WIRE_MESSAGE_CHARS].partition("\n")
    text = one_line(text) or f"the peer reported an error ({error_class.code})"
    if error_class is PeerBusy:
        return PeerBusy(_parse_seconds(value), text)
    if error_class is NoChainError:
        return NoChainError(_parse_blocks(value), text)
    return error_class(text)


_GRPC_CLASSES: Mapping[str, type[SwarmError]] = {
    "UNAVAILABLE": PeerUnavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": AuthenticationError,
    "INVALID_ARGUMENT": LocalProtocolError,
    "OUT_OF_RANGE": LocalProtocolError,
    "UNIMPLEMENTED": RemoteProtocolError,
    "NOT_FOUND": SessionLost,
    "FAILED_PRECONDITION": SessionLost,
    "ABORTED": SessionLost,
    "CANCELLED": SessionLost,
    "ALREADY_EXISTS": SessionLost,
    "RESOURCE_EXHAUSTED": PeerBusy,
}

_TLS_FAILURES = ("CERTIFICATE_VERIFY_FAILED", "INVALID_SIGNATURE", "HANDSHAKE FAILED", "HOSTNAME VERIFICATION")


def from_grpc_status(code_name: str, details: str) -> SwarmError:
    """The error for a failed call, from the name of grpc's status code ("UNAVAILABLE") and its details."""
    text = one_line(details) or f"the call failed ({one_line(code_name)})"
    shouted = details.upper()
    if code_name == "UNAVAILABLE" and "CERTIFICATE HAS EXPIRED" in shouted:
        days = LEAF_LIFETIME_SECONDS / 2 / 86400
        return ClockSkew(f"the peer's clock is {days:.0f} days or more behind this machine's: {text}")
    if code_name == "UNAVAILABLE" and any(sign in shouted for sign in _TLS_FAILURES):
        return AuthenticationError(text)
    if code_name == "RESOURCE_EXHAUSTED" and "LARGER THAN MAX" in shouted:
        return RemoteProtocolError(text) if "RECEIVED" in shouted else LocalProtocolError(text)
    error_class = _GRPC_CLASSES.get(code_name, RetryElsewhere)
    return PeerBusy(1.0, text) if error_class is PeerBusy else error_class(text)


def error_as_json(error: BaseException) -> dict[str, str]:
    """Why there is no result, for programs: the stable name, what happened, and what to do next."""
    if isinstance(error, SwarmError):
        return {"code": error.code, "message": one_line(str(error)), "hint": error.hint}
    if isinstance(error, KeyboardInterrupt):
        return {"code": "interrupted", "message": "interrupted", "hint": "Run it again."}
    message = one_line(f"{type(error).__name__}: {error}")
    return {"code": "unexpected", "message": message, "hint": "Run it again with --verbose, and report it."}


def describe_blocks(blocks: Sequence[int]) -> str:
    """Ascending block numbers as half-open ranges for people: (3, 4, 7) is "blocks 3:5, 7:8"."""
    if not blocks:
        return "a whole chain of blocks"
    ranges: list[tuple[int, int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1] = (ranges[-1][0], block + 1)
        else:
            ranges.append((block, block + 1))
    return "blocks " + ", ".join(f"{start}:{stop}" for start, stop in ranges)


def describe_clocks(first: str, second: str, ahead_seconds: float) -> str:
    """For people: "the client's clock is 27.0 h (97200 s) behind the peer's"; `first` is ahead by that time."""
    seconds = abs(ahead_seconds)
    exact = f"{seconds:.0f} s"
    if seconds > 2 * 86400 - 1:
        exact = f"{seconds / 86400:.1f} days ({exact})"
    elif seconds > 3600 - 1:
        exact = f"{seconds / 3600:.1f} h ({exact})"
    return f"{first} is {exact} {'behind' if ahead_seconds < 0 else 'ahead of'} {second}"


def one_line(text: str) -> str:
    """Cut to MAX_WIRE_MESSAGE_CHARS printable characters: text from a peer or a file may end up on a terminal."""
    printable = "".join(char if char.isprintable() else " " for char in text[: 2 * MAX_WIRE_MESSAGE_CHARS])
    return " ".join(printable.split())[: MAX_WIRE_MESSAGE_CHARS - 32]


def _cut_list(numbers: Sequence[int], max_chars: int) -> str:
    """As many of the numbers, joined by commas, as fit in `max_chars`."""
    text = ",".join(str(number) for number in numbers[:_MAX_MISSING_BLOCKS])
    return text if len(text) <= max_chars else text[:max_chars].rpartition(",")[0]


def _parse_seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 1.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 1.0


def _parse_blocks(value: str) -> tuple[int, ...]:
    parts = value[:MAX_WIRE_MESSAGE_CHARS].split(",")
    return tuple(int(part) for part in parts if part.isascii() and part.isdecimal() and len(part) < 7)
