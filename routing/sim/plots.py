"""Plots of simulations: distributions and sweeps, as SVG or PNG (by the file's suffix).

matplotlib is loaded when the first plot is drawn.  Equal data give equal bytes: no dates, no random ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
_MARKERS = "osD^vPX*"
_STROKES: Sequence[tuple[float, tuple[float, ...]]] = (
    (3.0, ()),
    (2.2, (2.0, 1.0)),
    (1.6, (1.0, 1.0)),
    (1.2, (5.0, 1.0, 1.0, 1.0)),
    (0.8, (4.0, 2.0)),
)
"""Width and dashes of the curves of a panel in turn, so that those beneath can be seen."""
_LOG_RATIO = 4.0
"""Values that are further apart are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One panel: a line per policy over what is varied; None where a policy was infeasible."""

    title: str
    varied: str
    values: tuple[float, ...]
    lines: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True)
class Distribution:
    """One panel: the cumulative distribution of every named sample."""

    title: str
    measured: str
    samples: Mapping[str, tuple[float, ...]]


def sweep_of(title: str, varied: str, points: Mapping[float, Mapping[str, float | None]]) -> Sweep:
    """A panel from the heights by value and policy; a policy that a value lacks has a gap there."""
    policies = dict.fromkeys(policy for heights in points.values() for policy in heights)
    lines = {policy: tuple(heights.get(policy) for heights in points.values()) for policy in policies}
    return Sweep(title, varied, tuple(map(float, points)), lines)


def draw(path: Path, panels: Sequence[Sweep | Distribution], measured: str) -> None:
    """Draw the panels side by side, four to a row; `measured` labels the vertical axis of sweeps.

    A policy has the same colour and marker in all panels.

    Raises ValueError for another suffix than .svg and .png, or without panels.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name}: a plot is written as {' or '.join(SUFFIXES)}")
    if not panels:
        raise ValueError(f"{path.name}: there is nothing to draw")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name in _curves(panel)))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context({"svg.hashsalt": "blockswarm", "font.size": 8, "axes.titlesize": 8}):
        width = 3.0 if any(isinstance(panel, Sweep) for panel in panels) else 4.0
        figure = Figure(figsize=(width * columns, 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= len(panels):
                axes.set_axis_off()
                continue
            panel = panels[number]
            axes.set_title(panel.title)
            if isinstance(panel, Sweep):
                _sweep(axes, panel, names)
                axes.set_ylabel(measured)
            else:
                _distribution(axes, panel, names)
            axes.grid(alpha=0.3)
        shown: dict[str, Artist] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                shown.setdefault(label, handle)
        labels = [name for name in names if name in shown]
        handles = [shown[name] for name in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, max(1, len(labels))))
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def _curves(panel: Sweep | Distribution) -> Mapping[str, tuple[float | None, ...]]:
    return panel.lines if isinstance(panel, Sweep) else panel.samples


def _sweep(axes: Axes, panel: Sweep, names: Sequence[str]) -> None:
    for name, values in panel.lines.items():
        number = names.index(name)
        heights = [float("nan") if value is None else value for value in values]
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(panel.values, heights, f"C{number}", marker=marker, markersize=3, linewidth=1, label=name)
    axes.set_xlabel(panel.varied)
    axes.set_ylim(bottom=0)


def _distribution(axes: Axes, panel: Distribution, names: Sequence[str]) -> None:
    """Cumulative curves, each with its name beside it; equal ones lie on each other, the later ones thinner."""
    curves = {name: tuple(sorted(sample)) for name, sample in panel.samples.items()}
    for place, (name, ordered) in enumerate(curves.items()):
        shares = [rank / len(ordered) for rank in range(len(ordered) + 1)]
        width, dashes = _STROKES[place % len(_STROKES)]
        axes.plot(
            (ordered[0], *ordered), shares, f"C{names.index(name)}", drawstyle="steps-post", linewidth=width,
            linestyle=(0, dashes), label=name, gid=f"{panel.title}: {name}",
        )  # fmt: skip
    axes.set_xlabel(panel.measured)
    axes.set_ylabel("fraction")
    axes.set_ylim(0, 1)
    ends = [value for ordered in curves.values() for value in (ordered[0], ordered[-1])]
    if min(ends) > 0 and max(ends) > _LOG_RATIO * min(ends):
        _logarithmic(axes, panel.measured)
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, ordered in curves.items():
        groups.setdefault(ordered, []).append(name)
    for labelled, x, share in _labels(groups):
        colour = f"C{names.index(labelled[0])}"
        axes.annotate(
            " = ".join(labelled), (x, share), (18, 0), textcoords="offset points", fontsize=6.5, va="center",
            color=colour, bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _logarithmic(axes: Axes, measured: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{measured} (log)")


def _labels(
    groups: Mapping[tuple[float, ...], Sequence[str]],
) -> Iterator[tuple[Sequence[str], float, float]]:
    """Names, value and share of the label of each ascending sample: the further right a curve, the lower its label."""
    ordered = sorted(groups, key=lambda sample: (sample[len(sample) // 2], sample), reverse=True)
    for place, sample in enumerate(ordered):
        share = (place + 0.5) / len(ordered)
        yield groups[sample], sample[min(int(share * len(sample)), len(sample) - 1)], share
