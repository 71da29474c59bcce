"""Opens a draft model, and checks that it has the tokens of the model that it guesses for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from ....proto.errors import SwarmError, UsageError
from ....proto.model.checkpoint import open_checkpoint
from ....proto.model.family import family_class, load_model
from ....routing.swarm import BlockRange
from .draft_model import DraftModel

_HINT = "Choose a smaller model of the same family: its tokenizer has to be the same."


def open_draft(draft: str | Path | PreTrainedModel, model: str | Path, revision: str | None = None) -> DraftModel:
    """Open a draft model for `model`: from a folder, a hub's "owner/name", or a loaded model.

    Raises UsageError if it cannot be loaded, or if its vocabulary is a different one.
    """
    if isinstance(draft, PreTrainedModel):
        loaded, place = draft, draft.name_or_path
    elif not isinstance(draft, str | Path):
        raise UsageError(
            f"draft is a folder, a hub's name or a loaded model, not {type(draft).__name__}", hint="Leave it out."
        )
    else:
        loaded, place = _loaded(draft), str(draft)
    ours, theirs = _vocabulary(str(model), revision), _vocabulary(place, None)
    if ours is None or theirs is None:
        raise UsageError(
            f"no tokenizer says whether the draft model {place or 'given'} has the tokens of {model}", hint=_HINT
        )
    if ours != theirs:
        raise UsageError(f"the draft model {place} has other tokens than {model}", hint=_HINT)
    return DraftModel(loaded)


def _loaded(draft: str | Path) -> PreTrainedModel:
    """Load a draft model with the checks of every model: sizes before allocation, no missing weight, no pickle."""
    try:
        checkpoint = open_checkpoint(draft)
        everything = BlockRange(0, checkpoint.num_blocks)
        state = {**checkpoint.ends_state(), **checkpoint.block_state(everything)}
        return load_model(family_class(checkpoint.config), checkpoint.config, state, check_size=True)
    except SwarmError as error:
        raise UsageError(f"the draft model {draft} cannot be loaded: {error}", hint=error.hint) from None


def _vocabulary(place: str, revision: str | None) -> dict[str, int] | None:
    """Return the token ids by text; None if there is no tokenizer. Raises UsageError if it cannot be read."""
    if not place:
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except OSError:
        return None
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise UsageError(f"the tokenizer of {place} cannot be read: {error}", hint=_HINT) from None
    known: dict[str, int] = tokenizer.get_vocab()
    return known
