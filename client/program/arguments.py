"""The arguments and options that the commands of `swarm-client` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A local folder with a safetensors checkpoint, or a Hugging Face id.")]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option("--initial-peers", help="A peer of the swarm, ID@HOST:PORT; may be given several times."),
]
SwarmKeyFile = Annotated[Path | None, typer.Option("--swarm-key", help="Key file of a private swarm.")]
IdentityFile = Annotated[
    Path | None,
    typer.Option("--identity", help="Key file of this client, made if there is none.  [default: a new identity]"),
]
NoPush = Annotated[
    bool, typer.Option("--no-push", help="Have every output come back through this client, peers send nothing on.")
]
WireFormat = Annotated[
    str,
    typer.Option(
        "--wire-format",
        help="auto sends what each peer computes in, and changes no value, nor does float32;"
        " bfloat16, float16 and int8 may send less.",
    ),
]
MinPrecision = Annotated[
    str | None,
    typer.Option(
        "--min-precision",
        help="Use only peers that compute in this format or a more precise one: float32,"
        " bfloat16, float16, int8, int4, nf4.  [default: any]",
    ),
]
AllowPeer = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-peer",
        help="Use only the peers with these ids; may be given several times. See docs/security.md.  [default: all]",
    ),
]
Patience = Annotated[
    float, typer.Option("--patience", help="Seconds to wait for room where all peers are full; your place is shown.")
]
NoPrefixCache = Annotated[
    bool, typer.Option("--no-prefix-cache", help="Compute the whole prompt, whatever the peers hold of an earlier one.")
]
Lan = Annotated[
    bool,
    typer.Option(
        "--lan",
        help="The swarm is on your own network: connect to private addresses, too."
        " Not needed where an initial peer is at such an address.",
    ),
]
Head = Annotated[
    str,
    typer.Option(
        "--head",
        help="How the head is held, which is most of what this client computes: auto keeps its numbers, in their"
        " fastest form here; plain, as torch has it; int8 rounds them: faster, but now and then another token.",
    ),
]
GuessAhead = Annotated[
    str,
    typer.Option(
        "--guess",
        help="Guess tokens ahead, for fewer trips to the peers and the same text: auto (where it pays), off,"
        " or a number, the most of them.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="A folder or a Hugging Face id of a small model with the same tokenizer: it runs here and guesses, too.",
        show_default=False,
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face model.")]
Report = Annotated[bool, typer.Option("--report", help="Say afterwards how fast it was, and where.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")]

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Stop after N tokens.")]
Temperature = Annotated[float | None, typer.Option(help="Draw tokens at this temperature; 0: take the likeliest.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this total probability.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the N likeliest tokens.")]
MinP = Annotated[float | None, typer.Option(help="Draw from tokens at least this likely, relative to the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: avoid tokens that were there before.")]
Seed = Annotated[int | None, typer.Option(help="Seed for drawing tokens.")]
PromptLookup = Annotated[
    int | None,
    typer.Option("--prompt-lookup", help="Guess N tokens ahead from the text so far; same tokens, fewer trips."),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop at this text; may be given several times.")]
