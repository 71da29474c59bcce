"""Text in, text out: what `swarm-client generate` and `chat` do with a connected model and its tokenizer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from ...proto.errors import SwarmError, UsageError, describe_blocks
from ...proto.model.checkpoint import open_checkpoint
from ...routing.trust import Evidence
from ..config import SessionEvent
from ..connect import SwarmConnection, connect
from ..model.generation import Generation, last_generation
from ..model.guess.open_draft import open_draft
from ..model.load import attach, load_ends
from .edge import checked_text
from .options import GenerateOptions, SwarmOptions
from .terminal import Spinner
from .text_stream import TextStream

logger = logging.getLogger(__name__)


@dataclass
class Talker:
    """A connected model with its tokenizer. Made by `open_talker`."""

    model: Any
    tokenizer: Any
    swarm: SwarmConnection


@dataclass(frozen=True)
class Reply:
    """A generated continuation, and how long it took."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    first_token_seconds: float
    """From the call to the first token; for beam search, which has no first token, to the end."""
    seconds: float
    generation: Generation | None
    """The call that made it; None for a model that runs without a swarm."""
    interrupted: bool = False
    """Whether Ctrl-C ended it."""
    error: SwarmError | None = None
    """The failure that ended it before its end."""

    @property
    def whole(self) -> bool:
        """Whether it came to its end."""
        return not self.interrupted and self.error is None

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token, or of all if they came together; 0 if none came or no time passed."""
        if (rest := self.seconds - self.first_token_seconds) > 0:
            return (len(self.token_ids) - 1) / rest
        return len(self.token_ids) / self.seconds if self.seconds > 0 else 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a text was generated; `reply` is what was there by then."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply

    @property
    def reason(self) -> Interrupted:
        return self


class BrokenOff(Exception):
    """A text failed: `reply` is what was there by then, which may be nothing, and `reason` is why."""

    def __init__(self, reply: Reply, reason: SwarmError) -> None:
        super().__init__(str(reason))
        self.reply = reply
        self.reason = reason


@contextmanager
def open_talker(
    model: str, options: SwarmOptions, spinner: Spinner, on_wait: Callable[[str], None]
) -> Iterator[Talker]:
    """Connect to the swarm of a model, and load its embedding, head and tokenizer. Raises SwarmError.

    `on_wait` is called, in the network thread, when a session waits for room or for missing peers.
    """
    transformers_logging.set_verbosity_error()
    spinner.say(f"opening {model}")
    checkpoint = open_checkpoint(model, revision=options.revision)
    checkpoint.model_digest(spinner.share(f"hashing {model}"))
    drafting = None
    if options.draft is not None:
        spinner.say(f"loading the draft model {options.draft}")
        drafting = open_draft(options.draft, model, options.revision)
    spinner.say("looking for the peers of the model")

    def note(event: SessionEvent) -> None:
        if event.kind == "queued":
            on_wait(f"waiting for room: {event.detail}")
        elif event.kind == "waiting":
            on_wait(event.detail)

    swarm = connect(
        checkpoint=checkpoint,
        initial_peers=[str(address) for address in options.initial_peers],
        swarm_key=options.swarm_key,
        wire_format=options.wire_format,
        identity_path=options.identity,
        lan=options.lan,
        push=options.push,
        prefix_cache=options.prefix_cache,
        min_precision=options.min_precision,
        allow_peers=options.allow_peers,
        patience_seconds=options.patience_seconds,
        on_event=note,
    )
    with swarm:
        spinner.say("loading the embedding and the head")
        ends = attach(load_ends(checkpoint, head=options.head), swarm, options.guess, drafting)
        yield Talker(ends, load_tokenizer(model, options.revision), swarm)


def load_tokenizer(model: str, revision: str | None) -> Any:
    """Load the model's tokenizer. Raises UsageError if it has none that loads without remote code."""
    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exceptions, for example for newer files
        raise UsageError(
            f"{model} has no tokenizer that can be loaded: {error}",
            hint="Put the tokenizer's files beside the weights, update tokenizers, or use Python and pass token ids.",
        ) from None


@contextmanager
def foreign_failures(what: str, hint: str) -> Iterator[None]:
    """Translate errors that other libraries raise about a model's files into a one-line UsageError; log the rest."""
    try:
        yield
    except (SwarmError, OSError):
        raise
    except Exception as error:
        logger.info("%s", what, exc_info=error)
        raise UsageError(f"{what}: {' '.join(str(error).split())[:300]}", hint=hint) from None


def generate(talker: Talker, prompt: str, options: GenerateOptions, write: Callable[[str], object]) -> Reply:
    """Continue `prompt`; `write` is called with the text piece by piece.

    Raises BrokenOff and Interrupted, and UsageError for a prompt that is none.
    """
    with foreign_failures("the model's tokenizer cannot read the prompt", "Try another prompt, or check its files."):
        inputs = talker.tokenizer(prompt, return_tensors="pt")
    ids = inputs["input_ids"]
    if not ids.shape[1]:
        raise UsageError("the prompt has no tokens", hint="Give some text with --prompt or on standard input.")
    kwargs = {"attention_mask": inputs.get("attention_mask")}
    return _reply(talker, lambda **more: talker.model.generate(ids, **kwargs, **more), ids, options, write)


def _reply(
    talker: Talker, call: Callable[..., Any], ids: Any, options: GenerateOptions, write: Callable[[str], object]
) -> Reply:
    if options.seed is not None:
        from transformers import set_seed

        set_seed(options.seed)
    kwargs = options.for_generate()
    if options.stop or talker.model.generation_config.stop_strings:
        kwargs["tokenizer"] = talker.tokenizer
    stream = TextStream(talker.tokenizer, write, time.perf_counter)
    started, earlier = time.perf_counter(), last_generation(talker.model)

    def reply(interrupted: bool = False, error: SwarmError | None = None) -> Reply:
        finished, generation = time.perf_counter(), last_generation(talker.model)
        first_at = stream.first_at if options.num_beams == 1 else None
        return Reply(
            text=stream.decoded() if interrupted or error else stream.text,
            token_ids=tuple(stream.token_ids),
            prompt_tokens=ids.shape[1],
            first_token_seconds=(finished if first_at is None else first_at) - started,
            seconds=finished - started,
            generation=generation if generation is not earlier else None,
            interrupted=interrupted,
            error=error,
        )

    try:
        with foreign_failures(
            "transformers cannot generate like this", "Check generation_config.json and the options."
        ):
            if options.num_beams == 1:
                call(streamer=stream, **kwargs)
            else:  # the text is not known before the last token
                output = call(**kwargs)
                stream.put(ids)
                stream.put(output[0, ids.shape[1] :])
                stream.end()
    except (KeyboardInterrupt, SwarmError) as ended:
        with suppress(KeyboardInterrupt):  # another one changes nothing: there is little left to write
            stream.end()
        if isinstance(ended, SwarmError):
            raise BrokenOff(reply(error=ended), ended) from ended
        raise Interrupted(reply(interrupted=True)) from None
    return reply()


def warn_of_doubt(reply: Reply, tell: Callable[[str], object]) -> None:
    """Warn if it is undecided whether the peers that computed the reply had the right weights."""
    hops = reply.generation.report.hops if reply.generation is not None else ()
    blocks = [block for hop in hops if hop.weights is Evidence.UNDECIDED for block in hop.blocks]
    if blocks:
        tell(
            f"other peers announce other weights for {describe_blocks(blocks)}, and no majority of networks decides: "
            "the text may be wrong (`swarm-client peers` shows them)"
        )


# --- chat ---

CHAT_HELP = "/reset begins a new conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def conversation_ids(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """Render the conversation with the model's chat template, or concatenate its lines without one: (1, tokens).

    `options` are passed to the template. Raises what the template raises.
    """
    if getattr(tokenizer, "chat_template", None) is not None:
        tokens = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True, **options
        )
    else:
        text = "".join(turn["content"] + ("\n" if turn["role"] == "user" else "") for turn in turns)
        tokens = tokenizer(text, return_tensors="pt")
    return tokens["input_ids"]


class Conversation:
    """The conversation so far, rendered with the model's chat template, or without one as plain lines."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._turns: list[dict[str, str]] = []

    @property
    def has_template(self) -> bool:
        return getattr(self._tokenizer, "chat_template", None) is not None

    def token_ids(self, line: str) -> Any:
        """Return everything so far plus the user's next line: (1, tokens). Raises UsageError if the template fails."""
        with foreign_failures("the model's chat template fails", "Use `swarm-client generate`, or another template."):
            return conversation_ids(self._tokenizer, [*self._turns, {"role": "user", "content": line}])

    def add(self, line: str, answer: str) -> None:
        """Append a turn."""
        self._turns += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]


def chat(
    talker: Talker,
    options: GenerateOptions,
    max_length: int,
    read: Callable[[], str],
    write: Callable[[str], object],
    tell: Callable[[str], object],
    heard: Callable[[Reply], object] = lambda reply: None,
) -> None:
    """Chat until `read` raises EOFError or returns "/quit"; "/reset" begins a new conversation.

    An interrupt while the model answers ends only that answer. `tell` is called with messages that are not part of the
    conversation, `heard` with each answer after it was written, also one that was stopped.
    """
    while _converse(talker, options, max_length, read, write, tell, heard):
        tell("a new conversation begins")


def _converse(
    talker: Talker,
    options: GenerateOptions,
    max_length: int,
    read: Callable[[], str],
    write: Callable[[str], object],
    tell: Callable[[str], object],
    heard: Callable[[Reply], object],
) -> bool:
    """Hold one conversation in one session; return whether another one follows."""
    conversation = Conversation(talker.tokenizer)
    limit = getattr(talker.model, "position_limit", None)
    with talker.model.session(max_length=max_length if limit is None else min(max_length, limit)) as session:
        while True:
            try:
                line = checked_text(read(), "the line").strip()
            except EOFError:
                return False
            except UsageError as error:
                tell(f"{error}\n  {error.hint}")
                continue
            except KeyboardInterrupt:
                tell("Ctrl-D or /quit ends the conversation")
                continue
            if line == "/quit":
                return False
            if line == "/reset":
                return True
            if line == "/help" or (line.startswith("/") and line[1:].isalpha()):
                tell(CHAT_HELP if line == "/help" else f"{line} is no command: {CHAT_HELP}")
                continue
            if line:
                _take_turn(talker, session, conversation, line, options, write, tell, heard)


def _take_turn(
    talker: Talker,
    session: Any,
    conversation: Conversation,
    line: str,
    options: GenerateOptions,
    write: Callable[[str], object],
    tell: Callable[[str], object],
    heard: Callable[[Reply], object],
) -> None:
    try:
        ids = conversation.token_ids(line)
    except UsageError as error:
        tell(f"{error}\n  {error.hint}")
        return
    room = session.max_length - ids.shape[1] - 1 - (options.prompt_lookup or 0)
    if room < 1:
        tell(f"the conversation has room for {session.max_length} tokens (--max-length): /reset begins a new one")
        return
    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        write(text)

    limited = _with_limit(options, room)
    try:
        reply = _reply(talker, lambda **more: session.generate_full(ids, **more), ids, limited, note)
    except (Interrupted, BrokenOff) as ended:
        reply = ended.reply
    write("\n")
    if reply.interrupted:
        tell("(stopped)")
    elif reply.error is not None:
        tell(f"{reply.error}\n  {reply.error.hint}")
    else:
        warn_of_doubt(reply, tell)
    conversation.add(line, "".join(said))
    heard(reply)


def _with_limit(options: GenerateOptions, room: int) -> GenerateOptions:
    return replace(options, max_new_tokens=min(options.max_new_tokens, room))
