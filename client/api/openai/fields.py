"""Reads the fields of a JSON object, each within its bounds; an invalid value is an error that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from .errors import ApiError, invalid

_TYPES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


def parse_object(body: bytes) -> dict[str, object]:
    """Parse a request's body as a JSON object. Raises ApiError if it is not one."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, not {describe(value)}")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def describe(value: object) -> str:
    """Return the kind of a JSON value, for a message."""
    return _TYPES.get(type(value), "something else")


class Fields:
    """The fields of one object; null counts as absent. The reading methods raise ApiError.

    `path` precedes a field's name in errors: "messages[0].".
    """

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values = values
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        return self._values.get(name)

    def error(self, name: str, message: str, code: str | None = None) -> ApiError:
        """Return an error about this field; `message` follows its name."""
        return invalid(f"'{self.path}{name}' {message}", self.path + name, code)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be an integer, not {describe(value)}", "invalid_type")
        if not low <= value <= high:
            raise self.error(name, f"must be between {low} and {high}", "invalid_value")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self._values.get(name)
        if value is None:
            return None
        return self.number_of(name, value, low, high)

    def number_of(self, name: str, value: object, low: float, high: float) -> float:
        """Return `value` as a number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, not {describe(value)}", "invalid_type")
        if not low <= value <= high or not math.isfinite(value):
            raise self.error(name, f"must be between {low:g} and {high:g}", "invalid_value")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._values.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {describe(value)}", "invalid_type")
        return value

    def text(self, name: str, max_chars: int) -> str | None:
        value = self._values.get(name)
        return None if value is None else self.text_of(name, value, max_chars)

    def text_of(self, name: str, value: object, max_chars: int) -> str:
        """Return `value` as a text of valid Unicode, without lone surrogates."""
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, not {describe(value)}", "invalid_type")
        if len(value) > max_chars:
            raise self.error(name, f"has {len(value)} characters, at most {max_chars} are possible", "string_too_long")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(name, "has half a surrogate pair, which is no character", "invalid_value") from None
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, f"must be one of {', '.join(choices)}", "invalid_value")
        return value

    def items(self, name: str, max_items: int) -> list[object] | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(name, f"must be an array, not {describe(value)}", "invalid_type")
        if len(value) > max_items:
            raise self.error(
                name, f"has {len(value)} elements, at most {max_items} are possible", "array_above_max_length"
            )
        return value

    def inner(self, name: str, index: int | None = None, value: object = None) -> Fields:
        """Return the fields of the object in this field, or of `value`, which is its element number `index`."""
        found = self._values.get(name) if index is None else value
        label = name if index is None else f"{name}[{index}]"
        if not isinstance(found, dict):
            raise self.error(label, f"must be an object, not {describe(found)}", "invalid_type")
        return Fields(found, f"{self.path}{label}.")
