"""Plots are files of the asked kind, the same bytes for the same data, and refuse what they cannot draw."""

from __future__ import annotations

import subprocess
import sys

import pytest
from blockswarm.routing.sim.plots import Distribution, Sweep, draw, sweep_of

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
