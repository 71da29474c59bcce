"""The form of a chat's answer (plain text, JSON of a schema, or tool calls), and parsing tool calls from the text.

A model writes tool calls as text.  If the request demands a call, a grammar allows only the JSON of one; if the model
may choose, two forms are recognised, which most templates teach:

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>        once or several times
    {"name": ..., "arguments" or "parameters": {...}}               as the whole answer

Any other text is content.  Nothing is guessed: the name must be that of one of the request's tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..pieces import CALLS, STOP, Piece, ToolCall
from .errors import ApiError
from .fields import Fields, parse_object

MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 200_000
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TAG, END_TAG = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """The JSON schema of its arguments."""
    described: Mapping[str, Any]
    """The tool as chat templates take it."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form of answer that a request asks for."""

    schema: str | None = None
    """The JSON schema of the whole text, as JSON; None: any text."""
    schema_param: str = "response_format"
    """The request's field that an error about the schema names."""
    tools: tuple[Tool, ...] = ()
    """The tools that may be called."""
    demanded: str | None = None
    """The name of the tool that must be called; "": any one of them; None: no call is demanded."""


def parse_form(fields: Fields) -> AnswerForm:
    """Parse the form of answer that a request asks for. Raises ApiError."""
    schema = _response_schema(fields)
    tools = _tools(fields)
    choice, name = _tool_choice(fields, tools)
    if choice == "none" or not tools:
        return AnswerForm(schema)
    if schema is not None:
        raise fields.error("response_format", "together with 'tools' is not possible here", "unsupported_parameter")
    if choice == "auto":
        return AnswerForm(tools=tools)
    if choice == "required":
        calls = [_object(name={"const": tool.name}, arguments=dict(tool.parameters)) for tool in tools]
        return AnswerForm(_schema_text(fields, "tools", {"anyOf": calls}), "tools", tools, "")
    tool = next(tool for tool in tools if tool.name == name)
    return AnswerForm(_schema_text(fields, "tools", dict(tool.parameters)), "tools", tools, name)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _response_schema(fields: Fields) -> str | None:
    if "response_format" not in fields:
        return None
    given = fields.inner("response_format")
    kind = given.choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return '{"type": "object"}'
    if kind == "json_schema":
        described = given.inner("json_schema")
        schema = described.value("schema")
        if not isinstance(schema, dict):
            raise described.error("schema", "must be an object", "invalid_type")
        return _schema_text(described, "schema", schema)
    if kind is None:
        raise given.error("type", "is missing", "missing_required_parameter")
    return None


def _schema_text(fields: Fields, name: str, schema: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(schema, allow_nan=False)
    except (RecursionError, ValueError):
        raise fields.error(name, "is nested too deeply", "invalid_value") from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise fields.error(name, f"has more than {MAX_SCHEMA_CHARS} characters", "string_too_long")
    return text


def _tools(fields: Fields) -> tuple[Tool, ...]:
    tools: dict[str, Tool] = {}
    for index, value in enumerate(fields.items("tools", MAX_TOOLS) or ()):
        given = fields.inner("tools", index, value)
        if given.choice("type", ("function",)) is None:
            raise given.error("type", "is missing: only functions are possible", "missing_required_parameter")
        function = given.inner("function")
        name = function.text("name", 64)
        if name is None or not NAME.fullmatch(name):
            raise function.error("name", "must have 1 to 64 letters, digits, - or _", "invalid_value")
        if name in tools:
            raise function.error("name", f"names the tool {name} again", "invalid_value")
        parameters = function.value("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        if not isinstance(parameters, dict):
            raise function.error("parameters", "must be a JSON schema", "invalid_type")
        described = {"name": name, "description": function.text("description", MAX_SCHEMA_CHARS) or ""}
        tools[name] = Tool(name, parameters, {"type": "function", "function": {**described, "parameters": parameters}})
    return tuple(tools.values())


def _tool_choice(fields: Fields, tools: Sequence[Tool]) -> tuple[str, str | None]:
    """Return "none", "auto" or "required", or "function" and its name."""
    given = fields.value("tool_choice")
    if given is None:
        return "auto", None
    if isinstance(given, str):
        choice = fields.choice("tool_choice", ("none", "auto", "required")) or "auto"
        if choice == "required" and not tools:
            raise fields.error("tool_choice", "needs 'tools'", "invalid_value")
        return choice, None
    function = fields.inner("tool_choice").inner("function")
    name = function.text("name", 64)
    if name not in {tool.name for tool in tools}:
        raise function.error("name", "is that of no tool of this request", "invalid_value")
    return "function", name


# --- calls in an answer ---


class CallReader:
    """Splits one answer into content and tool calls. Passes content on as soon as it cannot be part of a call."""

    def __init__(self, form: AnswerForm, new_id: Callable[[], str]) -> None:
        self._form = form
        self._new_id = new_id
        self._held = ""
        self._plain = False
        """Whether the answer has begun as content, and no call can follow."""

    def read(self, piece: Piece) -> Piece:
        """Return the piece with its content only, and with all calls if it is the last one."""
        self._held += piece.text
        if piece.finish is not None:
            content, calls = self._end()
            finish = CALLS if calls and piece.finish == STOP and not self._form.demanded else piece.finish
            return replace(piece, text=content, calls=calls, finish=finish)
        if self._form.demanded is None and (self._plain or not _may_be_call(self._held)):
            self._plain = True
            content, self._held = self._held, ""
            return replace(piece, text=content)
        return replace(piece, text="")

    def _end(self) -> tuple[str, tuple[ToolCall, ...]]:
        if self._form.demanded:
            return "", (ToolCall(self._new_id(), self._form.demanded, self._held),)
        calls = () if self._plain else self._calls()
        return (self._held if not calls else ""), calls

    def _calls(self) -> tuple[ToolCall, ...]:
        """Return all calls in the held text; none if any part of it is not a call."""
        text = self._held.strip()
        if text.startswith(TAG):
            parts = [part.partition(END_TAG) for part in text.split(TAG)[1:]]
            texts = [] if any(after.strip() for _, _, after in parts) else [said for said, _, _ in parts]
        else:
            texts = [text]
        calls = [self._call(said) for said in texts]
        return tuple(call for call in calls if call is not None) if calls and None not in calls else ()

    def _call(self, text: str) -> ToolCall | None:
        try:
            said = parse_object(text.strip().encode())
        except ApiError:
            return None
        arguments = said.get("arguments", said.get("parameters"))
        name = said.get("name")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        if name not in {tool.name for tool in self._form.tools}:
            return None
        return ToolCall(self._new_id(), name, json.dumps(arguments))


def _may_be_call(text: str) -> bool:
    begun = text.lstrip()
    return begun.startswith(("{", TAG)) or TAG.startswith(begun)
