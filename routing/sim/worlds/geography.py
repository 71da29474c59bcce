"""Where nodes are: published network maps, recorded round trips, and a synthetic planet.

A map's round trip is twice the shortest path of one-way delays.  Files are validated when they are loaded: errors
name the file, the line and what is wrong with it.  Seconds and degrees inside.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...timing import MAX_RTT_SECONDS

FloatArray = NDArray[np.float64]

TOPOLOGIES = ("abovenet", "bellcanada", "gtsce")
"""The maps that come with the package."""

MAX_NODES = 10_000
EARTH_RADIUS_KM = 6371.0
FIBRE_KM_PER_SECOND = 200_000.0
"""Light in glass: two thirds of its speed in vacuum."""


class GeographyError(ValueError):
    """A file of nodes, links or round trips that cannot be used; the message names the file and the place."""


@dataclass(frozen=True, slots=True)
class Node:
    """A place on a map; `longitude` and `latitude` (degrees) are None where the map does not know them."""

    label: str
    longitude: float | None
    latitude: float | None


@dataclass(frozen=True, slots=True)
class Link:
    """An undirected link between nodes `a` and `b` with the same one-way delay both ways."""

    a: int
    b: int
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Topology:
    """A connected network map."""

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    def rtt_seconds(self) -> FloatArray:
        """Round trips between all nodes, (n, n): twice the shortest path of one-way delays. O(n^3)."""
        n = len(self.nodes)
        delay = np.full((n, n), np.inf)
        np.fill_diagonal(delay, 0.0)
        for link in self.links:
            delay[link.a, link.b] = delay[link.b, link.a] = link.delay_seconds
        for via in range(n):
            np.minimum(delay, delay[:, via, None] + delay[None, via, :], out=delay)
        return 2.0 * delay


def bundled_topology(name: str) -> Topology:
    """One of `TOPOLOGIES`. Raises GeographyError for another name."""
    if name not in TOPOLOGIES:
        raise GeographyError(f"no topology called {name!r}: there are {', '.join(TOPOLOGIES)}")
    file = resources.files(__package__) / "data" / f"{name}.topology"
    return _parse_topology(name, f"{name}.topology", file.read_text(encoding="utf-8"))


def read_topology(path: Path) -> Topology:
    """A map from a file: ".graph" (Repetita's format) or our own ".topology". Raises GeographyError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        maps = ", ".join(TOPOLOGIES)
        raise GeographyError(f"{path.name} is no map that comes along ({maps}), nor a file: {reason}") from error
    parse = _parse_graph if path.suffix == ".graph" else _parse_topology
    return parse(path.stem, str(path), text)


def _parse_topology(name: str, source: str, text: str) -> Topology:
    nodes: list[Node] = []
    links: dict[tuple[int, int], Link] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{source}:{number}"
        match line.partition("#")[0].split():
            case []:
                continue
            case ["node", index, label, longitude, latitude]:
                if index != str(len(nodes)):
                    raise GeographyError(f"{where}: expected node {len(nodes)}, not {index}")
                nodes.append(_node(where, label, longitude, latitude))
            case ["link", a, b, delay]:
                _add_link(links, where, nodes, a, b, delay)
            case _:
                raise GeographyError(f"{where}: neither `node INDEX LABEL LONGITUDE LATITUDE` nor `link A B DELAY`")
    return _checked(name, source, nodes, links)


def _parse_graph(name: str, source: str, text: str) -> Topology:
    """Repetita: NODES n, a title, n x (label x y), EDGES m, a title, m x (label src dest weight bw delay)."""
    lines = _numbered_fields(text)
    nodes: list[Node] = []
    for number, fields in _section(source, lines, "NODES", 3):
        nodes.append(_node(f"{source}:{number}", *fields))
    links: dict[tuple[int, int], Link] = {}
    for number, (_, a, b, _, _, delay) in _section(source, lines, "EDGES", 6):
        _add_link(links, f"{source}:{number}", nodes, a, b, delay)
    for number, _ in lines:
        raise GeographyError(f"{source}:{number}: more lines than EDGES announces")
    return _checked(name, source, nodes, links)


def _numbered_fields(text: str) -> Iterator[tuple[int, list[str]]]:
    return ((n, line.split()) for n, line in enumerate(text.splitlines(), start=1) if line.strip())


def _section(
    source: str, lines: Iterator[tuple[int, list[str]]], keyword: str, width: int
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a section of a .graph file: a counting line, a title line, then that many rows."""
    number, fields = next(lines, (0, []))
    if len(fields) != 2 or fields[0] != keyword or not _is_index(fields[1]):
        raise GeographyError(f"{source}:{number}: expected `{keyword} <count>`")
    count = int(fields[1])
    if next(lines, None) is None:
        raise GeographyError(f"{source}: the {keyword} section ends before its title line")
    for row in range(count):
        number, fields = next(lines, (0, []))
        if len(fields) != width:
            raise GeographyError(
                f"{source}:{number or 'end'}: row {row} of {count} in {keyword} has {len(fields)} of {width} fields"
            )
        yield number, fields


def _number(where: str, what: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise GeographyError(f"{where}: {what} must be a number from {low:g} to {high:g}, not {text!r}")
    return value


def _node(where: str, label: str, longitude: str, latitude: str) -> Node:
    if longitude == latitude == "-" or (_float_or_nan(longitude), _float_or_nan(latitude)) == (0.0, 0.0):
        return Node(label, None, None)  # The zoo writes 0, 0 for places that it does not know.
    return Node(label, _number(where, "longitude", longitude, -180, 180), _number(where, "latitude", latitude, -90, 90))


def _is_index(text: str) -> bool:
    return text.isdecimal() and len(text) <= 9


def _float_or_nan(text: str) -> float:
    """The number that the text writes, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _add_link(
    links: dict[tuple[int, int], Link], where: str, nodes: Sequence[Node], a: str, b: str, delay: str
) -> None:
    """Later lines replace earlier ones for the same two nodes (a .graph file lists every direction)."""
    ends = []
    for text in (a, b):
        if not _is_index(text) or int(text) >= len(nodes):
            raise GeographyError(f"{where}: link end {text!r} is none of the {len(nodes)} nodes")
        ends.append(int(text))
    first, second = sorted(ends)
    if first == second:
        raise GeographyError(f"{where}: node {first} is linked to itself")
    micros = _number(where, "delay (microseconds)", delay, 0.0, MAX_RTT_SECONDS * 1e6)
    if micros == 0.0:
        raise GeographyError(f"{where}: delay must be more than 0 microseconds")
    links[first, second] = Link(first, second, micros * 1e-6)


def _checked(name: str, source: str, nodes: Sequence[Node], links: dict[tuple[int, int], Link]) -> Topology:
    if not nodes:
        raise GeographyError(f"{source}: a topology needs at least one node")
    if len(nodes) > MAX_NODES:
        raise GeographyError(f"{source}: {len(nodes)} nodes are more than the {MAX_NODES} that are supported")
    reached = {0}
    frontier = [0]
    neighbours: dict[int, list[int]] = {}
    for a, b in links:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    while frontier:
        for node in neighbours.get(frontier.pop(), ()):
            if node not in reached:
                reached.add(node)
                frontier.append(node)
    if len(reached) < len(nodes):
        lost = next(index for index in range(len(nodes)) if index not in reached)
        raise GeographyError(f"{source}: the network is not connected: no path from node 0 to node {lost}")
    return Topology(name, tuple(nodes), tuple(links[key] for key in sorted(links)))


def read_rtt_matrix(path: Path) -> FloatArray:
    """Round trips of n nodes from a CSV of n rows and n columns in milliseconds, zero diagonal; (n, n) seconds.

    The two directions may differ (asymmetric paths). Raises GeographyError.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GeographyError(f"{path}: cannot be read: {error}") from error
    if not rows or len(rows) > MAX_NODES:
        raise GeographyError(f"{path}: expected 1 to {MAX_NODES} rows, found {len(rows)}")
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        if len(row) != len(rows):
            raise GeographyError(f"{path}: row {i} has {len(row)} columns, the file has {len(rows)} rows")
        for j, text in enumerate(row):
            where = f"{path}: row {i}, column {j}"
            matrix[i, j] = _number(where, "round trip (ms)", text.strip(), 0.0, MAX_RTT_SECONDS * 1e3) / 1e3
            if (matrix[i, j] == 0.0) != (i == j):
                raise GeographyError(f"{where}: the round trip is 0 on the diagonal and nowhere else")
    return matrix


# --- a synthetic planet ---------------------------------------------------------------------------------------

CITIES: tuple[tuple[float, float, float], ...] = (
    (-74.0, 40.7, 20.1), (-118.2, 34.1, 15.5), (-87.7, 41.9, 8.9), (-95.4, 29.8, 7.3), (-79.4, 43.7, 6.2),
    (-99.1, 19.4, 22.0), (-46.6, -23.5, 22.4), (-58.4, -34.6, 15.4), (-0.1, 51.5, 14.3), (2.3, 48.9, 12.9),
    (13.4, 52.5, 6.1), (-3.7, 40.4, 6.8), (9.2, 45.5, 5.5), (37.6, 55.8, 12.6), (29.0, 41.0, 15.6),
    (31.2, 30.0, 22.2), (3.4, 6.5, 15.9), (28.0, -26.2, 10.1), (72.9, 19.1, 21.3), (77.2, 28.6, 32.9),
    (103.8, 1.4, 5.9), (106.8, -6.2, 11.2), (114.2, 22.3, 7.7), (121.5, 31.2, 28.5), (127.0, 37.6, 9.9),
    (139.7, 35.7, 37.2), (151.2, -33.9, 5.4),
)  # fmt: skip
"""(longitude, latitude, inhabitants in millions, rounded) of large cities on every continent."""


@dataclass(frozen=True, slots=True)
class Planet:
    """A synthetic internet: nodes in and around cities, paths longer than great circles, slow last miles."""

    inflation: float = 1.6
    """Length of a path over the great circle."""
    access_seconds_median: float = 0.008
    """Median round trip of the last mile of one node; log-normal."""
    access_sigma: float = 0.6
    violation_fraction: float = 0.0
    """Fraction of the pairs whose path takes a detour, so that the triangle inequality breaks."""
    violation_factor: float = 2.0
    """A detour is this many times as long."""

    def __post_init__(self) -> None:
        for name in ("inflation", "violation_factor"):
            if not 1.0 <= getattr(self, name) <= 100.0:
                raise GeographyError(f"{name} must be from 1 to 100, not {getattr(self, name)}")
        if not 0.0 <= self.violation_fraction <= 1.0:
            raise GeographyError(f"violation_fraction must be from 0 to 1, not {self.violation_fraction}")
        if not (0.0 < self.access_seconds_median <= 1.0 and 0.0 <= self.access_sigma <= 3.0):
            raise GeographyError("access_seconds_median must be in (0, 1] and access_sigma in [0, 3]")

    def rtt_seconds(self, count: int, rng: random.Random) -> FloatArray:
        """Round trips between `count` random nodes, (count, count), symmetric."""
        cities = rng.choices(CITIES, weights=[city[2] for city in CITIES], k=count)
        places = [(city[0] + rng.gauss(0.0, 0.7), city[1] + rng.gauss(0.0, 0.7)) for city in cities]
        log_median = math.log(self.access_seconds_median)
        access = np.array([rng.lognormvariate(log_median, self.access_sigma) for _ in range(count)])
        circles = great_circle_km(np.array([p[0] for p in places]), np.array([p[1] for p in places]))
        rtt = 2.0 * self.inflation * circles / FIBRE_KM_PER_SECOND + (access[:, None] + access[None, :])
        for i in range(count):
            for j in range(i):
                if self.violation_fraction and rng.random() < self.violation_fraction:
                    rtt[i, j] = rtt[j, i] = rtt[i, j] * self.violation_factor
        np.fill_diagonal(rtt, 0.0)
        return np.asarray(np.maximum(rtt, rtt.T))  # Haversines differ by an ulp between the two directions.


def great_circle_km(longitude: FloatArray, latitude: FloatArray) -> FloatArray:
    """Distances on the sphere between all places given in degrees (haversine); (n, n)."""
    lon, lat = np.radians(longitude), np.radians(latitude)
    haversine = (
        np.sin((lat[:, None] - lat[None, :]) / 2) ** 2
        + np.cos(lat[:, None]) * np.cos(lat[None, :]) * np.sin((lon[:, None] - lon[None, :]) / 2) ** 2
    )
    return np.asarray(2.0 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(haversine, 0.0, 1.0))))


def violation_fraction(rtt_seconds: FloatArray) -> float:
    """Fraction of pairs for which a detour over a third node is shorter than the direct path. O(n^3)."""
    n = len(rtt_seconds)
    shortest = rtt_seconds.copy()
    for via in range(n):
        np.minimum(shortest, rtt_seconds[:, via, None] + rtt_seconds[None, via, :], out=shortest)
    rows, columns = np.triu_indices(n, k=1)
    return float(np.mean(shortest[rows, columns] < rtt_seconds[rows, columns] * (1 - 1e-9))) if len(rows) else 0.0
