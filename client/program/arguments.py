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
    typer.Option("--identity", help="Key file of this client, created if missing.  [default: a new identity]"),
]
NoPush = Annotated[
    bool, typer.Option("--no-push", help="Route every output back through this client instead of from peer to peer.")
]
WireFormat = Annotated[
    str,
    typer.Option(
        "--wire-format",
        help="Format of activations on the wire. auto sends each peer's own dtype, which changes no value, and neither"
        " does float32; bfloat16, float16 and int8 may send fewer bytes, rounded.",
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
    float, typer.Option("--patience", help="Seconds to wait for room if all peers are full; your place is shown.")
]
NoPrefixCache = Annotated[
    bool, typer.Option("--no-prefix-cache", help="Compute the whole prompt, and have peers keep no cache of it.")
]
Lan = Annotated[
    bool,
    typer.Option(
        "--lan",
        help="The swarm is on your own network: connect to private addresses, too."
        " Not needed if an initial peer is at such an address.",
    ),
]
Head = Annotated[
    str,
    typer.Option(
        "--head",
        help="How to hold the head, which is most of what this client computes: auto, exact in its fastest form here;"
        " plain, torch's own linear; int8, rounded: faster, but now and then a token differs.",
    ),
]
GuessAhead = Annotated[
    str,
    typer.Option(
        "--guess",
        help="Guess tokens ahead, for fewer trips to the peers and the same text: auto (where it pays), off,"
        " or the most tokens to guess.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="A small model with the same tokenizer that guesses on this machine: a folder or a Hugging Face id.",
        show_default=False,
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face model.")]
Report = Annotated[bool, typer.Option("--report", help="Report the speed and where the time went.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text; an error, too.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")]

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Stop after N tokens.")]
Temperature = Annotated[float | None, typer.Option(help="Sample at this temperature; 0: take the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this total probability.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the N likeliest tokens.")]
MinP = Annotated[float | None, typer.Option(help="Sample from tokens at least this likely, relative to the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: avoid tokens that occurred before.")]
Seed = Annotated[int | None, typer.Option(help="Seed for sampling.")]
PromptLookup = Annotated[
    int | None,
    typer.Option("--prompt-lookup", help="Guess N tokens ahead from the text so far; same tokens, fewer trips."),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop at this text; may be given several times.")]
