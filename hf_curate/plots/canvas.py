"""The sheet that every plot is drawn on: one size and type, opaque and light, the same bytes for the same manifest.

Colours: blue and light grey differ in lightness as well as in hue, so they hold for colour-blind readers and in print.
The panel is opaque, so the picture reads the same on a dark page. A picture is 7 inches wide at 200 dots: 1400 pixels,
twice what a card shows.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

from hf_curate.errors import MissingPackageError
from hf_curate.hub.markdown import visible

KEPT, DROPPED, INK, QUIET, LINE, GRID = "#0b61a4", "#c9ced6", "#1f2328", "#59636e", "#b35900", "#e6e9ed"
WIDTH, DOTS = 7.0, 200


def png(draw: Callable[[Any], None], what: str, height: float) -> bytes:
    """What `draw` puts on a figure of this height in inches, as a PNG.

    Raises MissingPackageError where matplotlib is not installed; what: "the score plot".
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "plots", what) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's matplotlibrc does not change a card
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # shown as a box
        matplotlib.rcParams.update({"text.parse_math": False, "font.size": 10, "text.color": INK})
        figure = Figure(figsize=(WIDTH, height), dpi=DOTS, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def plain(axes: Any, *, grid: str = "y") -> None:
    """No frame but the ground line, quiet ticks, a grid behind what is drawn."""
    axes.set_facecolor("white")
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#9aa3ad")
    axes.tick_params(colors=QUIET, length=0, labelsize=9)


def titled(axes: Any, title: str, *, legend: bool = True) -> None:
    """A title at the left, and the legend between it and the axes: inside of them it would cover some shapes."""
    axes.set_title(title, loc="left", fontsize=11, weight="bold", pad=24 if legend else 10)
    if legend:
        axes.legend(
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(-0.01, 0.985),
            ncols=3,
            fontsize=9,
            handlelength=1.4,
            borderpad=0.2,
        )


def counted(axis: Any) -> None:
    """Whole numbers with commas."""
    axis.get_major_locator().set_params(integer=True)
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def short(text: object) -> str:
    """A foreign name on a plot: visible characters, at most 60."""
    shown = visible(str(text))
    return shown if len(shown) <= 60 else shown[:59] + "…"
