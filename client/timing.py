"""How long the client waits for what: its own time-outs and pauses, in one value that is injected.

Numbers that peers rely on too are in `proto/wire/timing.py`; those that the client acts on begin with the values from
there.  All are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..proto.wire.timing import ANSWER_SECONDS, CAPABILITY_SECONDS, LEASE_SECONDS, RECORD_REFRESH_SECONDS

PATIENCE_SECONDS = 30.0
"""Wait of a session for room, and of a running one for the replacement of peers that are gone, unless the user says."""
MOST_PATIENCE_SECONDS = 86400
"""The most that a user may say."""


@dataclass(frozen=True, slots=True)
class ChainTiming:
    """The waits of one session's chain, in seconds where the name says so."""

    late_seconds: float = 1.5
    """An answer is late this much after the time that the measured speed predicts..."""
    late_factor: float = 6.0
    """...times this..."""
    max_slowness: float = 4.0
    """...times what was observed over what was predicted, which counts up to here..."""
    late_ceiling_seconds: float = 120.0
    """...and never later than this, whatever was announced."""
    late_chances: int = 4
    """A peer that answers probes but not the step is given up when the step is late for this many times."""
    probe_seconds: float = 1.5
    """How long peers have to say where they are."""
    away_pause_seconds: float = 0.5
    """The pause between two tries to reach anybody at all."""
    slow_loss_seconds: float = 5.0
    """A chain is slow when it has lost this much time against what was announced."""
    slow_slack_seconds: float = 0.1
    """A step that is slower than announced by less than this loses nothing."""
    slow_steps: int = 20
    """A hop is slow, too, when it takes twice what was announced for this many steps on end; for twice as many after
    each slow hop that the session has left, because moving does not help where all are slow."""
    slow_hop_slack_seconds: float = 0.02
    """The time that a hop may take beyond that."""
    slow_gain: float = 0.67
    """A slow hop is left for another one if the chain then takes at most this share of what it takes now."""
    better_seconds: float = 60.0
    """Time between two looks of a long session for a chain that takes at most that share of what this one should."""
    open_seconds: float = 4.0
    """How long a replacement has to say that it has room, where the session may not wait."""
    reroute_seconds: float = 5.0
    """How long a peer has to take its new neighbours."""
    rebuild_seconds: float = 10.0
    """How long a rebuild may take at least..."""
    rebuild_factor: float = 10.0
    """...and as a multiple of what the measured speed predicts."""
    handover_seconds: float = 60.0
    """An attention cache that takes longer to copy, while steps go on, is replaced by a replay, which moves less and
    computes more."""
    part_seconds: float = 0.05
    """How long a part of an attention cache should take, which may hold a step up, beside the way..."""
    link_share: float = 0.5
    """...at which share of the time parts are under way..."""
    settle_seconds: float = 3.0
    """How long a copy that has hardly anything left to bring is given for a moment in which steps need not wait for it;
    then the next one waits..."""
    last_part_seconds: float = 2.0
    """...for no longer than this; then the cache is replayed."""
    noticed_seconds: float = 0.2
    """A replay that should be over sooner than a part by this is preferred: nobody notices less."""
    doubtful_parts: int = 3
    """How many parts on end have to say that the copy takes too long, or longer than a replay: on a busy machine one of
    them says little."""
    transfer_slack_seconds: float = 10.0
    """A peer gives a transfer up this much later than the client, which has other ways and keeps the session."""
    handover_wait_seconds: float = 10.0
    """A session that could go on waits no longer than this for room at a replacement."""
    handover_pause_seconds: float = 5.0
    """The pause after a look for replacements of leaving peers."""
    idle_look_seconds: float = 5.0
    """How often a session at rest looks whether one of its peers leaves; that asks nobody."""
    lease_seconds: float = LEASE_SECONDS
    """How long room on some peers is held while the session waits for room on the next one."""
    answer_seconds: float = ANSWER_SECONDS
    """A peer says within this time whether a session is admitted, waits, or is refused."""
    no_chain_pause_seconds: float = 0.5
    """The pause before the next look for a chain, where there was none."""
    max_busy_pause_seconds: float = 5.0
    """A peer whose queue is full is asked again no later than this, whatever it says."""
    remember_seconds: float = 10.0
    """How long peers have to keep the attention cache of a session that ends."""
    capability_seconds: float = CAPABILITY_SECONDS
    """How long a session may last."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a session waits for room, and a running one for peers that are gone to be replaced."""


@dataclass(frozen=True, slots=True)
class GuessTiming:
    """When guessing ahead pays, in seconds."""

    least_network_seconds: float = 0.010
    """A trip that spends less than this on the network (this machine, a LAN) is not worth a peer's rows."""
    idle_queue_seconds: float = 0.005
    """A step that waits at the peers for longer than it is computed, by more than this, says that they are busy."""


@dataclass(frozen=True)
class ClientTiming:
    """The time-outs and pauses of one client."""

    # --- the connection ---

    connect_seconds: float = 30.0
    """Wait for the first look at the swarm."""
    close_seconds: float = 5.0
    """Wait for everything to close."""
    leave_seconds: float = 3.0
    """Wait at the end for sessions that have ended here to be told to their peers."""
    operation_seconds: float = 3600.0
    """Longest operation; the deadlines that matter are those of each step."""
    stream_end_seconds: float = 10.0
    """Wait of a cancelled stream for its thread, which has nothing left to do but to unwind."""

    # --- the view of the swarm ---

    claim_stands_seconds: float = RECORD_REFRESH_SECONDS
    """A peer's claim to other blocks counts once it has stood for this time."""
    refresh_seconds: float = 15.0
    """Pause between two looks at the swarm."""
    look_seconds: float = 4.0
    """Time in which a look begins to ask peers; the last of them have `ping_seconds` to answer."""
    look_patience_seconds: float = 0.5
    """Silence of a peer after which another one is asked in its place."""
    first_looks_seconds: float = 12.0
    """Time for further looks at the start, while blocks are missing and there are peers that were not asked."""
    silent_seconds: float = 10.0
    """Time for which a peer that answers at none of its addresses is not asked again; it doubles each time..."""
    max_silent_seconds: float = 300.0
    """...up to this."""
    lookup_seconds: float = 5.0
    """Wait for a peer to answer a look-up."""
    ping_seconds: float = 3.0
    """Wait for a peer to answer a ping."""
    survey_ping_seconds: float = 5.0
    """The same for `swarm-client ping`, whose user would rather wait."""
    ban_seconds: float = 15.0
    """Time for which a peer that failed is not chosen; it doubles with each further failure..."""
    max_ban_seconds: float = 600.0
    """...up to this."""
    forget_failures_seconds: float = 600.0
    """A peer that has not failed for this long after its ban begins anew."""
    doubt_seconds: float = 0.1
    """A peer counts as this much further away for each failure that is remembered: others are preferred."""
    answering_seconds: float = 0.75
    """How long the candidates for a repair have to answer a ping, before one of them is chosen."""
    min_retry_seconds: float = 1.0
    """Shortest pause before full peers are asked again, whatever they announce."""

    # --- routing ---

    route_seconds: float = 0.5
    """Time for the proof that a chain is the best; without it, half of that again for a good one."""
    route_on_loop_seconds: float = 0.005
    """The longest search on the network loop; a longer one goes on in a thread."""

    # --- guessing ahead ---

    guess: GuessTiming = field(default_factory=GuessTiming)

    # --- a session's chain ---

    chain: ChainTiming = field(default_factory=ChainTiming)
