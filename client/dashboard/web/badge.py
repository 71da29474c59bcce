"""A badge for other pages: a small picture of a model's state."""

from __future__ import annotations

from dataclasses import dataclass

from ..board.now import ModelCard, Standing
from .site import Moment

CHAR_WIDTH = 7
MAX_LABEL_CHARS = 40
COLOURS = {
    Standing.WORKS: "#0b5d1e",
    Standing.FAILS: "#a30f1d",
    Standing.INCOMPLETE: "#a30f1d",
    Standing.UNPROVEN: "#5b4a00",
    Standing.UNSEEN: "#4a4f57",
}


@dataclass(frozen=True, slots=True)
class Badge:
    """Two texts side by side, with the widths of their boxes."""

    label: str
    label_width: int
    text: str
    text_width: int
    colour: str
    title: str


def badge_of(moment: Moment, model_id: str) -> Badge:
    """Return the badge of a model. Raises KeyError if it is not shown."""
    card = moment.card(moment.board(model_id))
    label, text = card.name[:MAX_LABEL_CHARS], badge_text(card)
    return Badge(label, _width(label), text, _width(text), COLOURS[card.standing], f"{card.name}: {card.sentence}")


def badge_text(card: ModelCard) -> str:
    if card.standing is Standing.WORKS and card.probe is not None and card.probe.tokens_per_second is not None:
        return f"works, {card.probe.tokens_per_second:.1f} tokens/s"
    return card.standing.value


def _width(text: str) -> int:
    return CHAR_WIDTH * len(text) + 12
