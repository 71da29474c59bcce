"""Plots are files of the asked kind, the same bytes for the same data, and refuse what they cannot draw."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from blockswarm.routing.sim.plots import Distribution, Sweep, draw, sweep_of

SVG = "{http://www.w3.org/2000/svg}"
SWEEP = Sweep("a map", "servers", (6.0, 10.0), {"petals": (None, 2.0), "ours": (1.5, 1.0)})
CDF = Distribution("a map", "seconds", {"petals": (3.0, 1.0, 2.0), "ours": (1.0,)})


@pytest.mark.long
def test_equal_data_give_equal_svg(tmp_path):
    files = [tmp_path / name for name in ("one.svg", "two.svg")]
    for file in files:
        draw(file, [SWEEP, CDF], "seconds per token")
    assert files[0].read_bytes() == files[1].read_bytes()
    text = files[0].read_text()
    assert text.startswith("<?xml")
    assert "dc:date" not in text


def drawn_curves(svg: str) -> dict[str, tuple[list[tuple[float, float]], str]]:
    """The points of each curve, in points of the picture, and its stroke, by its id."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        path = group.find(f"{SVG}path")
        if ": " in group.get("id", "") and path is not None:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
            found[group.attrib["id"]] = list(zip(numbers[::2], numbers[1::2], strict=True)), path.attrib["style"]
    return found


@pytest.mark.long
def test_curves_of_a_distribution_can_be_told_apart(tmp_path):
    """Four of five lay in one vertical line beside one that is slow: ten times as slow, with linear axes."""
    spread = [0.45 * 1.003**rank for rank in range(900)]
    near = [0.45 + 0.0001 * rank for rank in range(300)]
    samples = {"petals": spread, "proposed": near, "ours": near, "push": [value * 0.89 for value in near]}
    draw(tmp_path / "p.svg", [Distribution("map", "s", {k: tuple(v) for k, v in samples.items()})], "")
    text = (tmp_path / "p.svg").read_text()
    curves = {name.removeprefix("map: "): curve for name, curve in drawn_curves(text).items()}
    assert curves.keys() == samples.keys()
    middle = (min(y for points, _ in curves.values() for _, y in points) + max(y for _, y in curves["ours"][0])) / 2
    where = {name: min(points, key=lambda p: abs(p[1] - middle))[0] for name, (points, _) in curves.items()}
    assert where["proposed"] - where["push"] > 6
    assert where["petals"] - where["proposed"] > 60
    assert where["proposed"] == where["ours"]
    assert len({style for _, style in curves.values()}) == len(samples)
    assert curves["proposed"][1] != curves["ours"][1], "equal ones lie on each other, and both can be seen"
    for label in ("petals", "proposed = ours", "push"):
        assert f"<!-- {label} -->" in text


@pytest.mark.long
def test_png(tmp_path):
    draw(tmp_path / "plot.png", [CDF], "")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_another_suffix_and_no_panels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        draw(tmp_path / "plot.pdf", [SWEEP], "")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(tmp_path / "plot.svg", [], "")


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, blockswarm.routing.sim.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_sweep_is_made_from_heights_by_value_and_policy():
    points = {6.0: {"petals": None, "ours": 1.5}, 10.0: {"petals": 2.0, "ours": 1.0}}
    assert sweep_of("a map", "servers", points) == SWEEP
    assert sweep_of("x", "y", {1.0: {"a": 1.0}, 2.0: {"b": 2.0}}).lines == {"a": (1.0, None), "b": (None, 2.0)}
