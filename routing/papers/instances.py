"""Reading instance files: milliseconds, gigabytes and blocks from 1 there; seconds, bytes and blocks from 0 here.

Every value is checked once, here; an error names the file and the field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..chains import ChainModel
from ..perf import FloatArray, IntArray, PerfModel
from .baselines import PetalsSpec

GIGABYTE = 1e9
MILLISECOND = 1e-3
MIG_BLOCK_LIMIT = 4
"""The published runs cap a MIG slice at four blocks, in CG-BP and in PETALS."""

_MOST_BLOCKS = 10_000
_MOST_SERVERS = 100_000
_MOST_REQUESTS = 10_000_000
_MOST_TOKENS = 100_000_000
_MOST_MS = 1e12
_MOST_GB = 1e9


class InstanceError(ValueError):
    """A file does not say what it must; the message is `file: field: what is wrong`."""


@dataclass(frozen=True)
class Instance:
    """Servers, clients and requests of one experiment."""

    name: str
    model: PerfModel
    prompt_tokens: int
    initial_delay_seconds: float
    allocation_seconds: float
    """The constant that the published simulator charges every CG-BP request before its first token."""
    arrivals_seconds: FloatArray
    """Absolute and ascending, (requests,)."""
    request_client: IntArray
    """(requests,)."""
    requests_per_second: float | None
    """The nominal rate by which R is chosen."""
    concurrency: int | None
    """The design R, or None: chosen by a rule."""
    requests_per_client: int | None
    """Size of the offline problem, or None if there is none."""
    petals: PetalsSpec | None
    kinds: tuple[RequestKind, ...] = ()
    """The kinds of requests; empty: all are like `model`, a slot per block."""
    request_kind: IntArray | None = None
    """(requests,): which of `kinds`."""
    unit_bytes: float | None = None
    """The size of one unit of cache (a KV token of one block, or a slot); None: a slot of `model`."""

    def kind_of(self, request: int) -> int:
        """The kind of a request."""
        return int(self.request_kind[request]) if self.request_kind is not None else 0

    def request_kinds(self) -> tuple[RequestKind, ...]:
        """`kinds`, or the one kind that `model` is."""
        return self.kinds or (RequestKind(self.model, 1),)

    def cache_units(self, sizes: IntArray) -> IntArray:
        """Units of cache beside `sizes` (n,) hosted blocks; (n,)."""
        unit = self.unit_bytes if self.unit_bytes is not None else self.model.session_bytes
        return replace(self.model, session_bytes=unit).cache_slots(sizes)


@dataclass(frozen=True)
class RequestKind:
    """Requests of one length: their performance model, and the units of cache that they take per block."""

    model: PerfModel
    units_per_block: int


# --- a cursor over parsed JSON that knows where it is -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A value in a parsed file and its path there, for messages."""

    file: str
    path: str
    value: Any

    def error(self, problem: str) -> InstanceError:
        return InstanceError(f"{self.file}: {self.path or 'file'}: {problem}")

    def keys(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Check that this is an object with these keys and no others."""
        if not isinstance(self.value, Mapping):
            raise self.error("must be an object")
        for key in required:
            if key not in self.value:
                raise self.child(key).error("is missing")
        for key in self.value:
            if key not in required and key not in optional:
                raise self.child(str(key)).error("is not a known field")

    def child(self, key: str) -> Field:
        """The member `key`; its value is None if it is absent or null."""
        value = self.value.get(key) if isinstance(self.value, Mapping) else None
        return Field(self.file, f"{self.path}.{key}" if self.path else key, value)

    def items(self, *, least: int = 0, most: int = _MOST_REQUESTS) -> list[Field]:
        """The elements of an array of `least` to `most` elements."""
        if not isinstance(self.value, list):
            raise self.error("must be an array")
        if not least <= len(self.value) <= most:
            raise self.error(f"must have {least} to {most} elements, not {len(self.value)}")
        return [Field(self.file, f"{self.path}[{i}]", value) for i, value in enumerate(self.value)]

    def number(self, low: float = 0.0, high: float = _MOST_MS, *, above: bool = False) -> float:
        """A finite number in [low, high], or in (low, high] with `above`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(f"must be a number, not {self.value!r}" if self.value is not None else "is missing")
        if not (low <= self.value <= high and not (above and self.value == low)):  # NaN is not within, either
            raise self.error(f"must be {'more than' if above else 'at least'} {low:g} and at most {high:g}")
        return float(self.value)

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.number(low, high)
        if value != int(value):
            raise self.error(f"must be a whole number, not {self.value!r}")
        return int(value)

    def text(self) -> str:
        """Text that can be printed and can name a file."""
        if not isinstance(self.value, str):
            raise self.error("must be text")
        if "\0" in self.value or any("\ud800" <= char <= "\udfff" for char in self.value):
            raise self.error("holds a sign that is no text: NUL, or half of a pair")
        return self.value

    def numbers(self, count: int, low: float = 0.0, high: float = _MOST_MS) -> FloatArray:
        """An array of exactly `count` numbers."""
        return np.array([item.number(low, high) for item in self.items(least=count, most=count)], dtype=np.float64)

    def matrix(self, rows: int, columns: int) -> FloatArray:
        """An array of `rows` arrays of `columns` numbers."""
        found = [row.numbers(columns) for row in self.items(least=rows, most=rows)]
        return np.array(found, dtype=np.float64).reshape(rows, columns)


def read_json(path: Path) -> Field:
    """A parsed JSON file. Raises InstanceError if it cannot be read, is no JSON, or holds NaN or infinities."""
    return parsed_file(path, "JSON", lambda text: json.loads(text, parse_constant=_refuse))


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not a number")


def parsed_file(path: Path, language: str, parse: Callable[[str], Any]) -> Field:
    """The file as `parse` reads it. Raises InstanceError, also for what is nested too deeply, or has a number of
    thousands of digits."""
    try:
        return Field(path.name, "", parse(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InstanceError(f"{path.name}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise InstanceError(f"{path.name}: is nested too deeply") from error
    except ValueError as error:  # of text that is no UTF-8, of the parsers, and of numbers that are too long
        raise InstanceError(f"{path.name}: is not {language}: {error}") from error


# --- instances --------------------------------------------------------------------------------------------------

_DESCRIPTIVE = {
    "scenario", "topology", "client_nodes", "notes", "overhead_delay", "overhead_delay_input", "expected", "seed",
    "eta", "cluster", "clusters", "source", "description",
}  # fmt: skip
_REQUIRED = {"name", "L", "sm", "sc", "lc_in", "l_max", "servers", "rtt", "rtt_input", "inter_arrivals"}
_OPTIONAL = {
    "n_clients", "rtt_raw", "initial_delay", "alloc_delay_proposed", "lambda_per_ms", "request_client", "R", "petals",
    "offline",
}  # fmt: skip
_SERVER_REQUIRED = {"M", "tau", "tau_input"}
_SERVER_OPTIONAL = {"id", "type", "forward_rps", "network_rps", "node", "cluster", "location", "name"}
_PETALS_REQUIRED = {"join_order", "overhead_delay", "route_alloc_penalty", "d_model", "cache_gb_per_block"}
_PETALS_OPTIONAL = {"alloc_delay_constant"}


def load_instance(path: Path) -> Instance:
    """Read and check an instance file. Raises InstanceError naming the file and the field."""
    root = read_json(path)
    root.keys(_REQUIRED, _OPTIONAL | _DESCRIPTIVE)
    servers = root.child("servers").items(least=1, most=_MOST_SERVERS)
    for index, server in enumerate(servers):
        server.keys(_SERVER_REQUIRED, _SERVER_OPTIONAL)
        if server.child("id").value is not None and server.child("id").integer(0, _MOST_SERVERS) != index:
            raise server.child("id").error(f"must be {index}, its place in the list")
    clients = _count_clients(root)
    model = _model(root, servers, clients)
    arrivals = np.cumsum([gap.number() * MILLISECOND for gap in root.child("inter_arrivals").items()])
    offline, rate, concurrency = root.child("offline"), root.child("lambda_per_ms"), root.child("R")
    if offline.value is not None:
        offline.keys({"requests_per_client"})
    return Instance(
        name=root.child("name").text(),
        model=model,
        prompt_tokens=root.child("lc_in").integer(0, _MOST_TOKENS),
        initial_delay_seconds=_optional_ms(root.child("initial_delay")),
        allocation_seconds=_optional_ms(root.child("alloc_delay_proposed")),
        arrivals_seconds=np.asarray(arrivals, dtype=np.float64),
        request_client=_request_clients(root.child("request_client"), len(arrivals), clients),
        requests_per_second=rate.number(0, 1e6, above=True) / MILLISECOND if rate.value is not None else None,
        concurrency=concurrency.integer(1, 10**9) if concurrency.value is not None else None,
        requests_per_client=(
            offline.child("requests_per_client").integer(1, _MOST_REQUESTS) if offline.value is not None else None
        ),
        petals=_petals(root, servers, clients) if root.child("petals").value is not None else None,
    )


def _optional_ms(field: Field) -> float:
    return field.number() * MILLISECOND if field.value is not None else 0.0


def _count_clients(root: Field) -> int:
    clients = len(root.child("rtt").items(least=1, most=_MOST_SERVERS))
    stated = root.child("n_clients")
    if stated.value is not None and stated.integer(1, _MOST_SERVERS) != clients:
        raise stated.error(f"is {stated.value}, but rtt has {clients} rows")
    return clients


def _model(root: Field, servers: list[Field], clients: int) -> PerfModel:
    num_blocks = root.child("L").integer(1, _MOST_BLOCKS)

    def column(key: str, high: float, unit: float) -> FloatArray:
        return np.array([server.child(key).number(0, high) * unit for server in servers], dtype=np.float64)

    kinds = [server.child("type").text() if server.child("type").value is not None else "" for server in servers]
    limits = [min(MIG_BLOCK_LIMIT, num_blocks) if kind == "MIG" else num_blocks for kind in kinds]
    return PerfModel(
        num_blocks=num_blocks,
        block_bytes=root.child("sm").number(0, _MOST_GB, above=True) * GIGABYTE,
        session_bytes=root.child("sc").number(0, _MOST_GB, above=True) * GIGABYTE,
        new_tokens=root.child("l_max").integer(1, _MOST_TOKENS),
        memory_bytes=column("M", _MOST_GB, GIGABYTE),
        block_limit=np.array(limits, dtype=np.int64),
        decode_seconds=column("tau", _MOST_MS, MILLISECOND),
        prefill_seconds=column("tau_input", _MOST_MS, MILLISECOND),
        rtt_seconds=root.child("rtt").matrix(clients, len(servers)) * MILLISECOND,
        prefill_rtt_seconds=root.child("rtt_input").matrix(clients, len(servers)) * MILLISECOND,
    )


def _request_clients(field: Field, requests: int, clients: int) -> IntArray:
    if field.value is None:
        return np.zeros(requests, dtype=np.int64)
    found = [item.integer(0, clients - 1) for item in field.items(least=requests, most=requests)]
    return np.array(found, dtype=np.int64)


def _petals(root: Field, servers: list[Field], clients: int) -> PetalsSpec:
    field, count = root.child("petals"), len(servers)
    field.keys(_PETALS_REQUIRED, _PETALS_OPTIONAL)
    order = [item.integer(0, count - 1) for item in field.child("join_order").items(least=count, most=count)]
    if len(set(order)) != count:
        raise field.child("join_order").error("must name every server once")
    return PetalsSpec(
        join_order=tuple(order),
        hidden_size=field.child("d_model").integer(1, _MOST_TOKENS),
        cache_bytes_per_block=field.child("cache_gb_per_block").number(0, _MOST_GB, above=True) * GIGABYTE,
        forward_rps=np.array([server.child("forward_rps").number(0, 1e12) for server in servers]),
        network_rps=np.array([server.child("network_rps").number(0, 1e12) for server in servers]),
        hop_overhead_seconds=field.child("overhead_delay").number() * MILLISECOND,
        full_penalty_seconds=field.child("route_alloc_penalty").number() * MILLISECOND,
        raw_rtt_seconds=root.child("rtt_raw").matrix(clients + count, clients + count) * MILLISECOND,
        allocation_seconds=_optional_ms(field.child("alloc_delay_constant")),
    )


# --- chain composition ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChainCase:
    """One case of a chain-composition file."""

    name: str
    model: ChainModel
    requests_per_second: float
    load: float
    """The paper's rho bar: the utilisation aimed at."""
    capacity: int
    """c: sessions reserved per chain."""


_CASE_REQUIRED = {"name", "L", "sm", "sc", "arrival_rate_per_s", "rho_bar", "c", "servers"}
_CHAIN_SERVER_REQUIRED = {"M", "tau_c_s", "tau_p_s"}


def load_chain_cases(path: Path) -> list[ChainCase]:
    """Read a chain-composition file (seconds, GB). Raises InstanceError naming the file and the field."""
    root = read_json(path)
    root.keys({"cases"}, {"note", "name"})
    return [_chain_case(case) for case in root.child("cases").items(least=1, most=10_000)]


def _chain_case(case: Field) -> ChainCase:
    case.keys(_CASE_REQUIRED, {"expected", "notes"})
    servers = case.child("servers").items(least=1, most=_MOST_SERVERS)
    for server in servers:
        server.keys(_CHAIN_SERVER_REQUIRED, {"id", "type"})

    def column(key: str, unit: float = 1.0) -> FloatArray:
        return np.array([server.child(key).number(0, _MOST_MS) * unit for server in servers], dtype=np.float64)

    return ChainCase(
        name=case.child("name").text(),
        model=ChainModel(
            num_blocks=case.child("L").integer(1, _MOST_BLOCKS),
            block_bytes=case.child("sm").number(0, _MOST_GB, above=True) * GIGABYTE,
            session_bytes=case.child("sc").number(0, _MOST_GB, above=True) * GIGABYTE,
            memory_bytes=column("M", GIGABYTE),
            visit_seconds=column("tau_c_s"),
            block_seconds=column("tau_p_s"),
        ),
        requests_per_second=case.child("arrival_rate_per_s").number(0, 1e9, above=True),
        load=case.child("rho_bar").number(0, 1, above=True),
        capacity=case.child("c").integer(1, 10**9),
    )
