"""The models of an endpoint, each with its own options: from the command line, or from the tables of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...proto.errors import UsageError
from ...proto.settings import HOW_TO_WRITE, is_list_of_tables, placed, shown
from ..model.guess.policy import AUTO, OFF, checked_setting
from .edge import allowed_peers, swarm_options

if TYPE_CHECKING:
    from ..api.config import ModelConfig

PER_MODEL: Mapping[str, type | tuple[type, ...]] = {
    "model": str, "name": str, "max_length": int, "default_max_tokens": int, "initial_peers": list, "swarm_key": str,
    "identity": str, "lan": bool, "no_push": bool, "wire_format": str, "min_precision": str, "allow_peer": list,
    "patience": (int, float), "no_prefix_cache": bool, "revision": str, "head": str,
    "guess": (str, int), "draft": str,
}  # fmt: skip
"""Options that can be set per model, and the types of their values."""
TABLES = "models"
"""The setting that this module reads."""
_HOW_TO_WRITE: Mapping[object, str] = {
    **HOW_TO_WRITE,
    PER_MODEL["patience"]: HOW_TO_WRITE[float],
    PER_MODEL["guess"]: f'"{AUTO}", "{OFF}", or the most tokens to guess',
}


def models_of(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters that each [[models]] table of a file sets. Raises UsageError.

    Values must have the option's type; unlike on a command line, they are not all text. A model that guesses nothing
    takes no draft model from the options of all models.
    """
    tables = settings.get(TABLES, [])
    if not is_list_of_tables(tables) and tables != []:
        raise UsageError(f"{TABLES} has to be a list of tables", hint="Write [[models]] before each model's options.")
    return [_options(table, number) for number, table in enumerate(tables, start=1)]


def _options(table: Mapping[str, Any], number: int) -> dict[str, Any]:
    with placed(where(number, table)):
        options = {_known(key): _typed(key, value) for key, value in table.items()}
        guesses = checked_setting(options.get("guess", AUTO)) != OFF
    return options if guesses else {"draft": None} | options


def where(number: int, table: Mapping[str, Any]) -> str:
    """The place of a model in the file, by which a mistake is found."""
    name = table.get("name") or table.get("model")
    return f"[[models]] {number}" + (f" ({name})" if isinstance(name, str) and len(name) <= 256 else "")


def _known(key: str) -> str:
    name = key.replace("-", "_")
    if name not in PER_MODEL:
        options = ", ".join(option.replace("_", "-") for option in PER_MODEL)
        raise UsageError(f"{key!r} is no option of one model", hint=f"[[models]] takes {options}.")
    return name


def _typed(key: str, value: Any) -> Any:
    name = _known(key)
    fits = isinstance(value, PER_MODEL[name]) and isinstance(value, bool) == (PER_MODEL[name] is bool)
    if not fits or (isinstance(value, list) and not all(isinstance(element, str) for element in value)):
        raise UsageError(f"{key} cannot be {shown(value)}", hint=f"Write {_HOW_TO_WRITE[PER_MODEL[name]]}.")
    return Path(value) if name in ("swarm_key", "identity") else value


def entries_of(
    chosen: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], file: Path | None
) -> tuple[ModelConfig, ...]:
    """Return the models of the file's tables, each with the options of all models; one model without tables.

    Raises UsageError, which names the table.
    """
    if not tables:
        return (entry_of(chosen),)
    entries = []
    for number, own in enumerate(tables, start=1):
        with placed(file), placed(where(number, own)):
            entries.append(entry_of({**chosen, **own}))
    return tuple(entries)


def entry_of(chosen: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of one model from its options. Raises UsageError."""
    from ..api.config import ModelConfig, usual_name

    model = chosen["model"]
    if not model:
        raise UsageError("there is no model", hint="Name one: swarm-client serve MODEL, or model = in the file.")
    options = swarm_options(
        chosen["initial_peers"], chosen["swarm_key"], chosen["identity"], chosen["lan"], chosen["no_push"],
        chosen["revision"], wire_format=chosen["wire_format"], min_precision=chosen["min_precision"],
        allow_peers=allowed_peers(chosen["allow_peer"]), patience_seconds=chosen["patience"],
        prefix_cache=not chosen["no_prefix_cache"], head=chosen["head"], guess=chosen["guess"], draft=chosen["draft"],
    )  # fmt: skip
    name = chosen["name"] or usual_name(model)
    return ModelConfig(model, name, options, chosen["max_length"], chosen["default_max_tokens"])
