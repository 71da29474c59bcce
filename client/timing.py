"""The client's time-outs and pauses, in one value that is injected.

Numbers that peers rely on as well are in `proto/wire/timing.py`; those that the client acts on take their defaults from
there.  Times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..proto.wire.timing import ANSWER_SECONDS, CAPABILITY_SECONDS, LEASE_SECONDS, RECORD_REFRESH_SECONDS

PATIENCE_SECONDS = 30.0
"""Default patience: the longest wait of a session for room, and for blocks that no peer serves any more."""
MOST_PATIENCE_SECONDS = 86400
"""The longest patience that a user may set."""


@dataclass(frozen=True, slots=True)
class ChainTiming:
    """The waits of one session's chain, in seconds where the name says so."""

    late_seconds: float = 1.5
    """An answer is late after this time plus the predicted time of the steps in flight..."""
    late_factor: float = 6.0
    """...times this..."""
    max_slowness: float = 4.0
    """...times the observed slowness (observed over predicted time), which counts up to this..."""
    late_ceiling_seconds: float = 120.0
    """...where the second part is at most this, whatever was announced. See `StepPace.allowed_seconds`."""
    deadline_factor: float = 4.0
    """A step carries this multiple of the time after which its answer is late, as its deadline at the peers."""
    late_chances: int = 4
    """Give up a peer that answers probes but not the step when the step has been late this many times."""
    probe_seconds: float = 1.5
    """How long peers have to answer a probe."""
    away_pause_seconds: float = 0.5
    """Pause between two attempts to reach any node at all."""
    slow_loss_seconds: float = 5.0
    """A chain is slow when its steps have lost this much time in all; a step loses what it takes beyond twice its
    announced time..."""
    slow_slack_seconds: float = 0.1
    """...and this slack."""
    slow_steps: int = 20
    """A hop is slow, too, when it exceeds twice its announced time, and the slack below, in this many steps in a row.
    The number doubles with each slow hop that the session has left: moving does not help where all are slow."""
    slow_hop_slack_seconds: float = 0.02
    """The slack of a hop in one step."""
    slow_gain: float = 0.67
    """Replace a slow hop if the new chain is predicted to take at most this share of the present chain's step time."""
    better_seconds: float = 60.0
    """Interval at which a long session looks for a chain that takes at most that share of its own predicted time."""
    open_seconds: float = 4.0
    """How long a replacement has to say that it has room, where the session may not wait."""
    reroute_seconds: float = 5.0
    """How long a peer has to confirm its new neighbours."""
    rebuild_seconds: float = 10.0
    """A rebuild times out after this time..."""
    rebuild_factor: float = 10.0
    """...plus this multiple of its predicted time."""
    handover_seconds: float = 60.0
    """If copying an attention cache beside the running steps takes longer than this, rebuild it by a replay instead,
    which moves fewer bytes and computes more."""
    part_seconds: float = 0.05
    """Target time of one part of an attention cache, round trip excluded: a part may delay a step by this much..."""
    link_share: float = 0.5
    """...and the share of the time in which parts are under way."""
    settle_seconds: float = 3.0
    """How long an almost complete copy waits for a moment in which its last part delays no step; then the next
    operation waits for it..."""
    last_part_seconds: float = 2.0
    """...for at most this time; then the cache is replayed."""
    noticed_seconds: float = 0.2
    """Prefer a replay that is predicted to be faster than one more part by this much; users do not notice less."""
    doubtful_parts: int = 3
    """Switch to a replay after this many parts in a row say that the copy takes too long, or longer than a replay: on a
    busy machine a single part says little."""
    transfer_slack_seconds: float = 10.0
    """A peer gives up a transfer this much later than the client, which has alternatives and keeps the session."""
    passing_seconds: float = 1.0
    """How long a part may wait for the peer that takes it: the answers of the one that sends it wait meanwhile, and
    must not be late because of that."""
    handover_wait_seconds: float = 10.0
    """How long a session that could go on without a hand-over waits for room at the replacement."""
    handover_pause_seconds: float = 5.0
    """Pause after a search for a replacement, before the next one."""
    idle_look_seconds: float = 5.0
    """Interval at which a session at rest checks whether one of its peers is leaving; this sends nothing."""
    lease_seconds: float = LEASE_SECONDS
    """How long room on some peers is held while the session waits for room on the next one."""
    answer_seconds: float = ANSWER_SECONDS
    """How long a peer has to say whether a session is admitted, waits, or is refused."""
    no_chain_pause_seconds: float = 0.5
    """Pause before the next search for a chain after one that found none."""
    max_busy_pause_seconds: float = 5.0
    """Longest pause before a peer whose queue is full is asked again, whatever it says."""
    remember_seconds: float = 10.0
    """How long peers have to keep the attention cache of a session that ends."""
    capability_seconds: float = CAPABILITY_SECONDS
    """How long a session may last."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a session waits for room, and for blocks that no peer serves any more, whether it runs or begins."""


@dataclass(frozen=True, slots=True)
class GuessTiming:
    """Thresholds that decide whether guessing ahead pays."""

    least_network_seconds: float = 0.010
    """Guess only where a trip spends at least this long on the network: on one machine or a LAN it saves nothing."""
    idle_queue_seconds: float = 0.005
    """Peers are busy if a step waits in their queues for longer than it is computed, by more than this."""


@dataclass(frozen=True)
class ClientTiming:
    """The time-outs and pauses of one client."""

    # --- the connection ---

    connect_seconds: float = 30.0
    """Wait for the first look at the swarm."""
    close_seconds: float = 5.0
    """Wait for everything to close."""
    leave_seconds: float = 3.0
    """On closing, wait for the peers of sessions that have ended here to be told."""
    haste_seconds: float = 0.2
    """The same wait after an interrupt, and before it the longest look at the peers for a report."""
    operation_seconds: float = 3600.0
    """Longest operation; the deadlines that matter are those of each step."""
    stream_end_seconds: float = 10.0
    """Wait of a cancelled stream for its thread, which only has to unwind."""

    # --- the view of the swarm ---

    claim_stands_seconds: float = RECORD_REFRESH_SECONDS
    """A peer's claim to other blocks counts once it has stood for this time."""
    refresh_seconds: float = 15.0
    """Pause between two looks at the swarm."""
    look_seconds: float = 4.0
    """A look pings further peers for this long; the last ones still have `ping_seconds` to answer."""
    look_patience_seconds: float = 0.5
    """A look pings another peer in addition when one has not answered for this long."""
    first_looks_seconds: float = 12.0
    """Budget for further looks at the start, while blocks are missing and some peers have not been pinged."""
    silent_seconds: float = 10.0
    """How long a peer that answers at none of its addresses is not pinged again; doubles each time..."""
    max_silent_seconds: float = 300.0
    """...up to this."""
    lookup_seconds: float = 5.0
    """Time-out of a look-up at a peer."""
    ping_seconds: float = 3.0
    """Time-out of a ping."""
    survey_ping_seconds: float = 5.0
    """Time-out of a ping of `swarm-client ping`, whose user would rather wait."""
    ban_seconds: float = 15.0
    """How long a peer that failed is not chosen; doubles with each further failure..."""
    max_ban_seconds: float = 600.0
    """...up to this."""
    forget_failures_seconds: float = 600.0
    """A peer's failures are forgotten when it has not failed for this long after its ban."""
    doubt_seconds: float = 0.1
    """Penalty in routing for each remembered failure of a peer, so that others are preferred."""
    answering_seconds: float = 0.75
    """How long the candidates for a repair have to answer a ping before one of them is chosen."""
    min_retry_seconds: float = 1.0
    """Shortest pause before full peers are asked again, whatever they announce."""

    # --- routing ---

    route_seconds: float = 0.5
    """Budget for proving that a chain is the best; if it is used up, half of it again for finding a good one."""
    route_on_loop_seconds: float = 0.005
    """Longest search on the network loop; a longer one continues in a thread."""

    # --- guessing ahead ---

    guess: GuessTiming = field(default_factory=GuessTiming)

    # --- a session's chain ---

    chain: ChainTiming = field(default_factory=ChainTiming)
