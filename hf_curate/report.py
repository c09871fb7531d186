"""Plots of a selection, drawn from its manifest alone. matplotlib is imported when a plot is wanted, never pyplot.

Colours: blue and light grey differ in lightness as well as in hue, so they hold for colour-blind readers and in print.
The panel is opaque and light, so the picture reads the same on a dark page.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

from hf_curate.errors import ManifestError, MissingPackageError
from hf_curate.hub.markdown import visible

KEPT, DROPPED, INK, QUIET = "#0b61a4", "#c9ced6", "#1f2328", "#59636e"


def plot_scores(manifest: Mapping[str, Any]) -> bytes:
    """Histogram of the scores, kept rows stacked on dropped ones, as a PNG of about 1400 x 680 pixels.

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
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "plots", "the score plot") from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change a card
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # shown as a box
        matplotlib.rcParams.update({"text.parse_math": False, "font.size": 10, "text.color": INK})
        figure = Figure(figsize=(7, 3.4), dpi=200, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, manifest, histogram)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw(figure: Any, manifest: Mapping[str, Any], histogram: Mapping[str, Any]) -> None:
    edges = [float(edge) for edge in histogram["edges"]]
    kept, dropped = ([float(count) for count in histogram[part]] for part in ("kept", "dropped"))
    rows, threshold = manifest["rows"], manifest["budget"]["threshold"]
    axes = figure.add_subplot()
    axes.set_facecolor("white")
    axes.stairs(dropped, edges, fill=True, color=DROPPED, label=f"dropped: {rows['scored'] - rows['kept']:,} rows")
    tops = [a + b for a, b in zip(kept, dropped, strict=True)]
    axes.stairs(tops, edges, baseline=dropped, fill=True, color=KEPT, label=f"kept: {rows['kept']:,} rows")
    axes.set_ylim(0, 1.06 * max([*tops, 1.0]))
    axes.set_xlim(edges[0], edges[-1])
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label=f"threshold {threshold:.4g}")
    column = visible(str(manifest["selector"]["column"]))
    axes.set_xlabel(column if len(column) <= 60 else column[:59] + "…", color=QUIET)
    axes.set_ylabel("rows", color=QUIET)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(
        f"{rows['kept']:,} of {rows['scored']:,} scored rows kept", loc="left", fontsize=11, weight="bold", pad=24
    )
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#9aa3ad")
    axes.tick_params(colors=QUIET, length=0, labelsize=9)
    axes.legend(  # above the bars: inside the axes it would cover some shapes
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.985),
        ncols=3,
        fontsize=9,
        handlelength=1.4,
        borderpad=0.2,
    )
