"""The five plots of a selection: scores, steps, length, pass rate, nested budgets. `drawn` makes those there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_curate.errors import ManifestError
from hf_curate.plots.canvas import (
    DROPPED,
    INK,
    KEPT,
    LINE,
    QUIET,
    counted,
    plain,
    png,
    short,
    titled,
)

Manifest = Mapping[str, Any]


def plot_scores(manifest: Manifest) -> bytes:
    """Histogram of the scores, kept rows stacked on dropped ones, as a PNG of 1400 x 680 pixels.

    Args:
        manifest (`dict`): a manifest whose `scores.histogram` is set.

    Returns:
        `bytes`: the PNG; the same manifest gives the same bytes under the same matplotlib.

    Raises:
        ManifestError: the manifest has no histogram.
        MissingPackageError: matplotlib is not installed.
    """
    histogram = (manifest["scores"] or {}).get("histogram")
    if histogram is None:
        raise ManifestError(
            "This manifest has no score histogram (scores.histogram is null), so there is nothing to plot"
        )
    return png(lambda figure: _scores(figure, manifest, histogram), "the score plot", 3.4)


def _scores(figure: Any, manifest: Manifest, histogram: Mapping[str, Any]) -> None:
    edges = [float(edge) for edge in histogram["edges"]]
    kept, dropped = ([float(count) for count in histogram[part]] for part in ("kept", "dropped"))
    rows, threshold = manifest["rows"], manifest["budget"]["threshold"]
    axes = figure.add_subplot()
    axes.stairs(dropped, edges, fill=True, color=DROPPED, label=f"dropped: {rows['scored'] - rows['kept']:,} rows")
    tops = [a + b for a, b in zip(kept, dropped, strict=True)]
    axes.stairs(tops, edges, baseline=dropped, fill=True, color=KEPT, label=f"kept: {rows['kept']:,} rows")
    axes.set_ylim(0, 1.06 * max([*tops, 1.0]))
    axes.set_xlim(edges[0], edges[-1])
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label=f"threshold {threshold:.4g}")
    axes.set_xlabel(short(manifest["selector"]["column"]), color=QUIET)
    axes.set_ylabel("rows", color=QUIET)
    counted(axes.yaxis)
    plain(axes)
    titled(axes, f"{rows['kept']:,} of {rows['scored']:,} scored rows kept")


def plot_steps(manifest: Manifest) -> bytes:
    """Two strips, kept and dropped rows: the mean score of a step by its relative place in the trace."""
    return png(lambda figure: _steps(figure, manifest["steps"]), "the plot of steps", 2.1)


def _steps(figure: Any, steps: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    nan = float("nan")
    strips = [[nan if mean is None else mean for mean in steps[part]["mean"]] for part in ("kept", "dropped")]
    known = [mean for strip in strips for mean in strip if mean == mean] or [0.0]
    low, high = min(known), max(known)
    shades = ["#f3f5f8", "#8bb7dc", KEPT, "#083d68"]
    colours = LinearSegmentedColormap.from_list("steps", shades).with_extremes(bad="#ffffff")
    scale = Normalize(low, high if high > low else low + 1.0)
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(strips, cmap=colours, norm=scale, edgecolors="white", linewidth=1.5)
    for row, strip in enumerate(strips):
        for column, mean in enumerate(strip):
            ink = "white" if mean == mean and scale(mean) > 0.55 else INK
            text = f"{mean:.2f}" if mean == mean else "none"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=ink)
    axes.invert_yaxis()
    axes.set_yticks([0.5, 1.5], [f"{part}\n{sum(steps[part]['steps']):,} steps" for part in ("kept", "dropped")])
    places = range(0, len(strips[0]) + 1, 2)
    axes.set_xticks(list(places), [f"{100 * place // len(strips[0])} %" for place in places])
    axes.set_xlabel("relative place of the step in its trace", color=QUIET)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=QUIET, length=0, labelsize=9)
    axes.set_title("Mean score of a step", loc="left", fontsize=11, weight="bold", pad=8)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET, length=0, labelsize=8)


def plot_length(manifest: Manifest) -> bytes:
    """Scores by length: the middle half and the median of each tenth of the rows, and the share that was kept."""
    return png(lambda figure: _length(figure, manifest), "the plot of lengths", 4.0)


def _length(figure: Any, manifest: Manifest) -> None:
    length, rows = manifest["length"], manifest["rows"]
    groups = length["groups"]
    places = range(len(groups))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    halves = [group["p75"] - group["p25"] for group in groups]
    bottoms = [group["p25"] for group in groups]
    upper.bar(places, halves, 0.62, bottoms, color=DROPPED, label="middle half of the scores")
    upper.plot(places, [group["median"] for group in groups], "o-", color=KEPT, linewidth=1.6, label="median")
    upper.set_ylabel(short(manifest["selector"]["column"])[:24], color=QUIET)
    plain(upper)
    unit = "tokens" if length["of"] == "tokens" else "mean length of the responses"
    titled(upper, f"Score by length, {len(groups)} groups of rows from short to long")
    shares = [100.0 * group["kept"] / group["rows"] for group in groups]
    lower.bar(places, shares, 0.62, color=KEPT)
    overall = 100.0 * rows["kept"] / rows["scored"]
    lower.axhline(overall, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    lower.set_ylim(0, 1.15 * max([*shares, overall, 1.0]))
    lower.set_ylabel("% kept", color=QUIET)
    lower.set_xlabel(unit, color=QUIET)
    lower.set_xticks(list(places), [_range(group["from"], group["to"]) for group in groups])
    plain(lower)
    lower.tick_params(labelsize=8)
    figure.align_ylabels()


def _range(low: float, high: float) -> str:
    ends = [f"{end:,.0f}" if float(end).is_integer() or abs(end) >= 100 else f"{end:.3g}" for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def plot_pass_rate(manifest: Manifest) -> bytes:
    """Rows by pass rate, kept ones stacked on dropped ones, and the mean score of each bin."""
    return png(lambda figure: _pass_rate(figure, manifest), "the plot of pass rates", 4.0)


def _pass_rate(figure: Any, manifest: Manifest) -> None:
    rates = manifest["pass_rate"]
    kept, dropped = rates["kept"], rates["dropped"]
    places, inner = range(len(kept)), len(kept) - 2
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    upper.bar(places, dropped, 0.8, color=DROPPED, label=f"dropped: {sum(dropped):,} rows")
    upper.bar(places, kept, 0.8, dropped, color=KEPT, label=f"kept: {sum(kept):,} rows")
    upper.set_ylabel("rows", color=QUIET)
    counted(upper.yaxis)
    plain(upper)
    titled(upper, "Rows by pass rate: always fail at the left, always pass at the right")
    means = [float("nan") if mean is None else mean for mean in rates["mean_score"]]
    lower.axhline(0.0, color="#9aa3ad", linewidth=0.8)
    lower.plot(places, means, "o", color=LINE, markersize=5)
    lower.set_ylabel("mean score", color=QUIET)
    lower.set_xlabel("share of a row's rollouts that are right", color=QUIET)
    below = [f"<{(place + 1) / inner:.2g}" for place in range(inner)]
    lower.set_xticks(list(places), ["0", *below, "1"])
    lower.margins(y=0.2)
    plain(lower)
    figure.align_ylabels()


def plot_nested(manifest: Manifest) -> bytes:
    """Score mass by rows kept, along the order that the rows were kept in, with the nested budgets on it."""
    return png(lambda figure: _nested(figure, manifest), "the plot of nested budgets", 3.4)


def _nested(figure: Any, manifest: Manifest) -> None:
    nested, pool, kept = manifest["nested"], manifest["rows"]["in"], manifest["rows"]["kept"]
    curve, end = nested["curve"], nested["curve"]["rows"][-1]
    shares = [100.0 * rows / pool for rows in curve["rows"]]
    axes = figure.add_subplot()
    axes.plot(shares, [100.0 * mass for mass in curve["score_mass"]], color=KEPT, linewidth=2.0, label="in this order")
    axes.plot([0, shares[-1]], [0, 100], color=QUIET, linewidth=1.0, linestyle=(0, (2, 2)), label="in a random one")
    axes.axvline(100.0 * kept / pool, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label=f"kept: {kept:,} rows")
    for budget in nested["budgets"]:
        share, mass = 100.0 * budget["rows"] / pool, 100.0 * budget["score_mass"]
        axes.plot([share], [mass], "o", color=KEPT, markersize=6)
        text = f"{budget['budget']}: {mass:.0f} %"
        behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        axes.annotate(text, (share, mass), (8, -5), textcoords="offset points", fontsize=8.5, color=INK, bbox=behind)
    axes.set_xlim(0, max(shares[-1], 100.0 * end / pool))
    axes.set_ylim(0, 104)
    axes.set_xlabel("% of the rows", color=QUIET)
    axes.set_ylabel("% of the score mass", color=QUIET)
    plain(axes, grid="both")
    titled(axes, "How much of the score each budget keeps")


def _has_histogram(manifest: Manifest) -> bool:
    return bool((manifest.get("scores") or {}).get("histogram"))


def _has_part(name: str) -> Callable[[Manifest], bool]:
    return lambda manifest: bool(manifest.get(name))


PLOTS: dict[str, tuple[Callable[[Manifest], bytes], Callable[[Manifest], bool]]] = {
    "scores": (plot_scores, _has_histogram),
    "steps": (plot_steps, _has_part("steps")),
    "length": (plot_length, _has_part("length")),
    "pass_rate": (plot_pass_rate, _has_part("pass_rate")),
    "nested": (plot_nested, lambda manifest: bool((manifest.get("nested") or {}).get("curve"))),
}
"""Name -> how it is drawn, and whether a manifest has what it shows."""


def has(name: str, manifest: Manifest) -> bool:
    """Whether a manifest has the numbers of a plot."""
    return PLOTS[name][1](manifest)


def plot(name: str, manifest: Manifest) -> bytes:
    """A plot as a PNG."""
    return PLOTS[name][0](manifest)
