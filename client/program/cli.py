"""`swarm-client`: generate text with a swarm, and look at one."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...proto.exit_status import exit_status, run_program
from ...proto.lean_imports import lighten_imports
from ...proto.settings import Version, arguments_or_exit
from .arguments import (
    AllowPeer,
    AsJson,
    Draft,
    GuessAhead,
    Head,
    IdentityFile,
    InitialPeers,
    Lan,
    MaxNewTokens,
    MinP,
    MinPrecision,
    Model,
    NoPrefixCache,
    NoPush,
    Patience,
    PromptLookup,
    RepetitionPenalty,
    Report,
    Revision,
    Seed,
    Stop,
    SwarmKeyFile,
    Temperature,
    TopK,
    TopP,
    Verbose,
    WireFormat,
)
from .edge import JsonOutput, allowed_peers, given_prompt, reported_errors, run, survey, swarm_options, tell, write
from .serve import new_api_key, new_key, serve
from .served_models import TABLES

if TYPE_CHECKING:
    from ...proto.errors import SwarmError
    from .options import GenerateOptions, SwarmOptions
    from .talk import Reply, Talker

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SWARM_CLIENT"},
    help="Generate text with a swarm of peers that share a large language model, and look at such a swarm.",
)


@app.callback()
def every_command(version: Version = False) -> None:
    """Generate text with a swarm of peers that share a large language model, and look at such a swarm."""


@app.command()
def generate(
    model: Model,
    initial_peers: InitialPeers = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to continue.  [default: standard input]")
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    num_beams: Annotated[int, typer.Option(help="Width of beam search; the text comes at its end.")] = 1,
    prompt_lookup: PromptLookup = None,
    stop: Stop = None,
    report: Report = False,
    as_json: AsJson = False,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    no_push: NoPush = False,
    wire_format: WireFormat = "auto",
    min_precision: MinPrecision = None,
    allow_peer: AllowPeer = None,
    patience: Patience = 30.0,
    no_prefix_cache: NoPrefixCache = False,
    head: Head = "auto",
    guess: GuessAhead = "auto",
    draft: Draft = None,
    revision: Revision = None,
    verbose: Verbose = False,
) -> None:
    """Continue a text, and print each token as it comes. On Ctrl-C it ends, and a report tells what was reached.

    \b
    swarm-client generate ./model --initial-peers ID@HOST:PORT --prompt "A cat sat"

    The likeliest token is taken each time, unless one of --temperature, --top-p, --top-k and --min-p is given.
    """
    with reported_errors(verbose, as_json=as_json) as output:
        from .options import GenerateOptions

        wish = GenerateOptions(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed, num_beams=num_beams, prompt_lookup=prompt_lookup,
            stop=tuple(stop or ()),
        )  # fmt: skip
        options = swarm_options(
            initial_peers, swarm_key, identity, lan, no_push, revision, wire_format=wire_format,
            min_precision=min_precision, allow_peers=allowed_peers(allow_peer), patience_seconds=patience,
            prefix_cache=not no_prefix_cache, head=head, guess=guess, draft=draft,
        )  # fmt: skip
        text = given_prompt(prompt)
        _generate(model, options, text, wish, report, output)


def _generate(
    model: str, options: SwarmOptions, prompt: str, wish: GenerateOptions, report: bool, output: JsonOutput
) -> None:
    from .render import account_as_json, describe_account
    from .terminal import spinner

    with spinner("starting torch") as turning:
        from . import account, talk  # slow to import, so only after the command line was checked

        begun = False

        def write_piece(piece: str) -> None:
            nonlocal begun
            begun = True
            turning.stop()
            if not output.wanted:
                write(piece)

        def tell_of_waiting(what: str) -> None:
            if not turning.change(what):
                tell(f"\n{what}" if begun and sys.stdout.isatty() else what)  # a line of its own in mid-text

        with talk.open_talker(model, options, turning, tell_of_waiting) as talker:
            before = account.step_counts(talker.swarm)

            def end(reply: Reply) -> None:
                turning.stop()
                if begun or reply.whole:
                    write_piece("\n")
                talk.warn_of_doubt(reply, tell)
                if report or output.wanted:
                    told = account.account_for(talker, reply, before)
                    output.write(account_as_json(told))
                    if report:
                        tell(describe_account(told))

            turning.say("waiting for the first token")
            try:
                end(talk.generate(talker, prompt, wish, write_piece))
            except (talk.Interrupted, talk.BrokenOff) as stopped:
                end(stopped.reply)
                raise stopped.reason from None


@app.command()
def chat(
    model: Model,
    initial_peers: InitialPeers = None,
    max_length: Annotated[int, typer.Option(help="Room for the whole conversation, in tokens.")] = 2048,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    prompt_lookup: PromptLookup = None,
    stop: Stop = None,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    no_push: NoPush = False,
    wire_format: WireFormat = "auto",
    min_precision: MinPrecision = None,
    allow_peer: AllowPeer = None,
    patience: Patience = 30.0,
    no_prefix_cache: NoPrefixCache = False,
    head: Head = "auto",
    guess: GuessAhead = "auto",
    draft: Draft = None,
    report: Report = False,
    revision: Revision = None,
    verbose: Verbose = False,
) -> None:
    """Chat with a model; the peers keep the attention cache of the conversation between turns.

    /reset begins a new conversation, /help shows this, /quit or Ctrl-D ends, Ctrl-C stops an answer.
    """
    with reported_errors(verbose):
        from ...proto.errors import UsageError
        from .options import GenerateOptions

        if max_length < 2:
            raise UsageError(f"--max-length must be at least 2, not {max_length}")
        wish = GenerateOptions(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed, prompt_lookup=prompt_lookup, stop=tuple(stop or ()),
        )  # fmt: skip
        options = swarm_options(
            initial_peers, swarm_key, identity, lan, no_push, revision, wire_format=wire_format,
            min_precision=min_precision, allow_peers=allowed_peers(allow_peer), patience_seconds=patience,
            prefix_cache=not no_prefix_cache, head=head, guess=guess, draft=draft,
        )  # fmt: skip
        from .terminal import spinner

        with spinner("starting torch") as turning:
            from . import talk

            with talk.open_talker(model, options, turning, tell) as talker:
                turning.stop()
                _chat(talker, wish, max_length, report)


def _chat(talker: Talker, wish: GenerateOptions, max_length: int, report: bool) -> None:
    from . import account, talk
    from .render import describe_account

    with suppress(ImportError):  # where there is no readline
        import readline  # noqa: F401  # input() then edits lines and remembers them

    if not talk.Conversation(talker.tokenizer).has_template:
        tell("the model has no chat template: your lines are continued as they are")
    tell(talk.CHAT_HELP)
    prompt = "> " if sys.stdin.isatty() else ""
    before = account.step_counts(talker.swarm)

    failed: SwarmError | None = None

    def heard(reply: Reply) -> None:
        nonlocal before, failed
        failed = failed or reply.error
        if report:
            tell(describe_account(account.account_for(talker, reply, before)))
            before = account.step_counts(talker.swarm)

    talk.chat(talker, wish, max_length, lambda: input(prompt), write, tell, heard)
    if failed is not None and not sys.stdin.isatty():  # nobody has seen that an answer was cut off
        raise typer.Exit(exit_status(failed))


@app.command()
def route(
    model: Model,
    initial_peers: InitialPeers = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt to plan for.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer to plan for.")] = 128,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the best other chain too, and why each unused peer is not used.")
    ] = False,
    as_json: AsJson = False,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    no_push: NoPush = False,
    revision: Revision = None,
    verbose: Verbose = False,
) -> None:
    """Show the chain of peers that a request would get now, with the predicted times."""
    with reported_errors(verbose, as_json=as_json):
        options = swarm_options(initial_peers, swarm_key, identity, lan, no_push, revision)
        from ...routing.swarm import RequestSpec
        from ..survey.survey import predicted_chain
        from .render import chain_as_json, describe_chain

        request = RequestSpec(prompt_tokens, new_tokens)
        if explain:
            from ..survey.explain import explained_chain
            from .render import describe_explanation, explanation_as_json

            _, told = survey(model, revision, lambda named: explained_chain(named, options, request))
            print(json.dumps(explanation_as_json(told)) if as_json else describe_explanation(told))
            return
        _, chain = survey(model, revision, lambda named: predicted_chain(named, options, request))
        print(json.dumps(chain_as_json(chain)) if as_json else describe_chain(chain))


@app.command()
def peers(
    model: Model,
    initial_peers: InitialPeers = None,
    as_json: AsJson = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Print the swarm as a file for `swarm-sim plan` instead of a table.")
    ] = False,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    revision: Revision = None,
    verbose: Verbose = False,
) -> None:
    """List the peers of a model and the blocks they host."""
    with reported_errors(verbose, as_json=as_json):
        options = swarm_options(initial_peers, swarm_key, identity, lan, False, revision)
        from ..survey.survey import list_peers, live_snapshot
        from .render import describe_peers, peers_as_json, snapshot_as_json

        if snapshot:
            named, found = survey(model, revision, lambda named: live_snapshot(named, options))
            print(json.dumps(snapshot_as_json(named.num_blocks, found), indent=2))
            return
        named, lines = survey(model, revision, lambda named: list_peers(named, options))
        if as_json:
            print(json.dumps(peers_as_json(named.num_blocks, lines)))
        else:
            print(describe_peers(named.num_blocks, lines))


@app.command()
def status(
    model: Model,
    initial_peers: InitialPeers = None,
    as_json: AsJson = False,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    revision: Revision = None,
    verbose: Verbose = False,
) -> None:
    """Show what the swarm promises: R, the guaranteed time per token, the weakest block, claimed moves."""
    with reported_errors(verbose, as_json=as_json):
        options = swarm_options(initial_peers, swarm_key, identity, lan, False, revision)
        from ..survey.survey import swarm_outlook
        from .render import describe_outlook, outlook_as_json

        _, outlook = survey(model, revision, lambda named: swarm_outlook(named, options))
        print(json.dumps(outlook_as_json(outlook)) if as_json else describe_outlook(outlook))


@app.command()
def ping(
    target: Annotated[str, typer.Argument(help="The address of a peer (ID@HOST:PORT), or a model: all its peers.")],
    initial_peers: InitialPeers = None,
    as_json: AsJson = False,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    revision: Revision = None,
    verbose: Verbose = False,
) -> None:
    """Measure round trips and clocks, and show what peers have done since they started."""
    with reported_errors(verbose, as_json=as_json):
        from ...proto.network.address import PeerAddress
        from ..survey.survey import model_name, pulses_of_model, take_pulses
        from .render import describe_pulses, pulse_as_json
        from .terminal import spinner

        with spinner("pinging") as turning:
            if ("@" in target or ":" in target) and not Path(target).is_dir():  # no name of a model has these
                pulses = run(take_pulses((PeerAddress.parse(target),)))
            else:
                options = swarm_options(initial_peers, swarm_key, identity, lan, False, revision)
                turning.say("opening the model")
                named = model_name(target, revision, turning.share("hashing the model"))
                turning.say("looking at the swarm")
                pulses = run(pulses_of_model(named, options))
        print(json.dumps([pulse_as_json(pulse) for pulse in pulses]) if as_json else describe_pulses(pulses))


app.command()(serve)
app.command("new-api-key")(new_api_key)
app.command("new-key")(new_key)


def main() -> None:
    """The console script."""
    lighten_imports()
    run_program("swarm-client", _run_command)


def _run_command() -> None:
    app(arguments_or_exit("swarm-client", app, sys.argv[1:], words=1, tables=(TABLES,)), prog_name="swarm-client")


if __name__ == "__main__":
    main()
