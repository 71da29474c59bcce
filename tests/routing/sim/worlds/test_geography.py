"""Maps, matrices and the synthetic planet: what is loaded is right, what is wrong is named."""

from __future__ import annotations

import random

import numpy as np
import pytest
from blockswarm.routing.sim.worlds.geography import (
    TOPOLOGIES,
    GeographyError,
    Planet,
    bundled_topology,
    great_circle_km,
    read_rtt_matrix,
    read_topology,
    violation_fraction,
)

GRAPH = """NODES 3
label x y
0_Paris 2.3 48.9
1_None 0.0 0.0
2_Rome 12.5 41.9

EDGES 4
label src dest weight bw delay
edge_0 0 1 1 1000000 1000
edge_1 1 0 1 1000000 1000
edge_2 1 2 1 1000000 500
edge_3 2 1 1 1000000 700
"""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "nodes", "links", "largest_ms", "mean_ms", "shortest_us", "longest_us"),
    [
        ("abovenet", 23, 31, 65.1, 17.1, 100, 13800),
        ("bellcanada", 48, 64, 30.4, 9.4, 78, 6160),
        ("gtsce", 149, 193, 14.3, 4.1, 5, 1081),
    ],
)
def test_bundled_maps_have_the_published_figures(name, nodes, links, largest_ms, mean_ms, shortest_us, longest_us):
    """Counts, delay ranges and round trips as the literature gives them for these maps."""
    topology = bundled_topology(name)
    assert len(topology.nodes) == nodes
    assert len(topology.links) == links
    delays = [link.delay_seconds * 1e6 for link in topology.links]
    assert round(min(delays)) == shortest_us
    assert round(max(delays)) == longest_us
    rtt = topology.rtt_seconds() * 1e3
    assert rtt.max() == pytest.approx(largest_ms, abs=0.05)
    assert rtt[~np.eye(nodes, dtype=bool)].mean() == pytest.approx(mean_ms, abs=0.05)
    assert (rtt == rtt.T).all()
    assert violation_fraction(rtt) == 0.0


def test_every_bundled_map_is_listed():
    assert {bundled_topology(name).name for name in TOPOLOGIES} == set(TOPOLOGIES)
    with pytest.raises(GeographyError, match="abovenet"):
        bundled_topology("nowhere")


def test_graph_files_load_and_the_last_direction_wins(tmp_path):
    topology = read_topology(write(tmp_path, "small.graph", GRAPH))
    assert [node.label for node in topology.nodes] == ["0_Paris", "1_None", "2_Rome"]
    assert topology.nodes[1].longitude is None
    assert topology.rtt_seconds()[0, 2] == pytest.approx(2 * (1000 + 700) * 1e-6)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("NODES 3", "NODES three", "small.graph:1: expected `NODES <count>`"),
        ("NODES 3", "NODES 4", "row 3 of 4 in NODES"),
        ("EDGES 4", "EDGES 5", "row 4 of 5 in EDGES"),
        ("EDGES 4", "EDGES 3", "more lines than EDGES"),
        ("0_Paris 2.3", "0_Paris nan", "longitude"),
        ("41.9", "95", "latitude"),
        ("edge_2 1 2 1 1000000 500", "edge_2 1 7 1 1000000 500", "link end '7'"),
        ("edge_2 1 2 1 1000000 500", "edge_2 1 1 1 1000000 500", "linked to itself"),
        ("edge_2 1 2 1 1000000 500", f"edge_2 1 {'9' * 5000} 1 1000000 500", "link end"),
        ("1000000 700", "1000000 -1", "delay"),
        ("1000000 700", "1000000 0", "more than 0"),
        ("1000000 700", "1000000 inf", "delay"),
    ],
)
def test_a_broken_graph_file_is_named_with_its_line(tmp_path, before, after, message):
    with pytest.raises(GeographyError, match=r"small\.graph") as error:
        read_topology(write(tmp_path, "small.graph", GRAPH.replace(before, after)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one node"),
        ("node 0 A 1 2\nnode 2 B 1 2\n", "expected node 1"),
        ("node 0 A 1 2\nnode 1 B 1 2\n", "not connected: no path from node 0 to node 1"),
        ("vertex 0\n", "neither"),
    ],
)
def test_a_broken_map_of_our_format_is_named(tmp_path, text, message):
    with pytest.raises(GeographyError, match=r"x\.topology") as error:
        read_topology(write(tmp_path, "x.topology", text))
    assert message in str(error.value)


def test_a_missing_file_is_an_expected_error(tmp_path):
    with pytest.raises(GeographyError, match="no map that comes along"):
        read_topology(tmp_path / "absent.graph")
    with pytest.raises(GeographyError, match="cannot be read"):
        read_rtt_matrix(tmp_path / "absent.csv")


def test_rtt_matrix_in_milliseconds(tmp_path):
    matrix = read_rtt_matrix(write(tmp_path, "rtt.csv", "0,10,20\n11,0,30\n20,30,0\n"))
    assert matrix.tolist() == [[0, 0.010, 0.020], [0.011, 0, 0.030], [0.020, 0.030, 0]]


@pytest.mark.parametrize("text", ["", "0,1\n", "0,x\n1,0\n", "0,-1\n1,0\n", "0,nan\n1,0\n", "0,0\n0,0\n", "1,1\n1,0\n"])
def test_a_bad_rtt_matrix_is_refused(tmp_path, text):
    with pytest.raises(GeographyError, match=r"rtt\.csv"):
        read_rtt_matrix(write(tmp_path, "rtt.csv", text))


def test_great_circles():
    """Paris to New York is 5,837 km; antipodes are half the circumference apart."""
    km = great_circle_km(np.array([2.3522, -74.006, 2.3522 - 180]), np.array([48.8566, 40.7128, -48.8566]))
    assert km[0, 1] == pytest.approx(5837, rel=0.002)
    assert km[0, 2] == pytest.approx(np.pi * 6371, rel=1e-6)


def test_the_planet_is_seeded_and_plausible():
    rtt = Planet().rtt_seconds(80, random.Random(1))
    assert (rtt == Planet().rtt_seconds(80, random.Random(1))).all()
    assert (rtt == rtt.T).all()
    assert (np.diag(rtt) == 0).all()
    off_diagonal = rtt[~np.eye(80, dtype=bool)]
    assert off_diagonal.min() > 0.001
    assert 0.05 < np.median(off_diagonal) < 0.25
    assert off_diagonal.max() < 0.6


@pytest.mark.parametrize("field", [{"inflation": 0.5}, {"violation_fraction": 1.5}, {"access_seconds_median": 0.0}])
def test_an_absurd_planet_is_refused(field):
    with pytest.raises(GeographyError):
        Planet(**field)
