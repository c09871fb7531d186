"""The pictures of the page: paired differences over all worlds, and what the selectors keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from evidence.results import Outcome
from evidence.selectors import FULL, RANDOM

COLOURS = ("#3366aa", "#cc5533", "#559955")
METADATA = {"Software": None}  # or the file would change with the version of matplotlib alone


def differences(outcomes: Sequence[Outcome], path: Path) -> None:
    """One panel a world: selector by selector the mean paired difference to random, with its 95 % interval."""
    worlds = list(dict.fromkeys(outcome.condition.world for outcome in outcomes))
    names = [name for name in outcomes[0].accuracy if name not in (RANDOM, FULL)]
    figure, panels = plt.subplots(1, len(worlds), figsize=(3.0 * len(worlds) + 1.6, 6.4), sharey=True, squeeze=False)
    for panel, world in zip(panels[0], worlds, strict=True):
        own = [outcome for outcome in outcomes if outcome.condition.world == world]
        for place, outcome in enumerate(own):
            colour, shift = COLOURS[place % len(COLOURS)], 0.24 * (place - (len(own) - 1) / 2)
            found = [outcome.difference(name) for name in names]
            panel.errorbar(
                [mean for mean, _ in found],
                [row + shift for row in range(len(names))],
                xerr=[outcome.half_width(error) for _, error in found],
                fmt="o",
                markersize=4,
                color=colour,
                alpha=1.0 if outcome.informative else 0.35,
                label=outcome.condition.label + ("" if outcome.informative else " (uninformative)"),
            )
        panel.axvline(0.0, color="#888888", linewidth=0.8)
        panel.set_title(world)
        panel.set_xlabel("points above random")
        panel.grid(axis="y", color="#eeeeee")
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.11))
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata=METADATA)
    plt.close(figure)


def kept(outcome: Outcome, path: Path) -> None:
    """What each selector keeps, as stacked shares of the kinds of rows."""
    names = list(outcome.shares)
    kinds = list(outcome.shares[names[0]])
    figure, panel = plt.subplots(figsize=(7.5, 4.8))
    left = [0.0] * len(names)
    for place, kind in enumerate(kinds):
        widths = [100.0 * outcome.shares[name][kind] for name in names]
        panel.barh(names, widths, left=left, label=kind, color=plt.get_cmap("Set2")(place))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    panel.invert_yaxis()
    panel.set_xlim(0, 100)
    panel.set_xlabel(f"percent of the kept rows ({outcome.condition.world}, {outcome.condition.label})")
    panel.legend(ncols=len(kinds), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata=METADATA)
    plt.close(figure)
