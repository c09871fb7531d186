"""The score plot: a small PNG of the manifest's histogram, the same bytes for the same manifest."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_curate.errors import ManifestError, MissingPackageError
from hf_curate.plots.canvas import DROPPED, KEPT
from hf_curate.plots.draw import plot_scores

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def manifest() -> dict[str, Any]:
    pytest.importorskip("matplotlib")
    return json.loads((GOLDENS / "manifest_grace.json").read_text(encoding="utf-8"))


def pixels(png: bytes) -> dict[str, int]:
    """How many pixels of the picture have each colour."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png)).convert("RGB")
    return {"#{:02x}{:02x}{:02x}".format(*colour): count for count, colour in image.getcolors(1 << 24)}


def test_the_plot_is_a_small_opaque_png_with_the_same_bytes_each_time(manifest: dict[str, Any]) -> None:
    png = plot_scores(manifest)
    assert png.startswith(b"\x89PNG\r\n")
    assert len(png) < 200_000
    assert b"Software" not in png
    assert png == plot_scores(manifest)
    assert pytest.importorskip("PIL.Image").open(io.BytesIO(png)).convert("RGBA").getextrema()[3] == (255, 255)


def test_kept_and_dropped_areas_are_as_large_as_their_counts(manifest: dict[str, Any]) -> None:
    manifest["budget"]["threshold"] = None  # the line would cover bars
    manifest["scores"]["histogram"] = {"edges": [0, 1, 2], "kept": [0, 100], "dropped": [300, 0]}
    counts = pixels(plot_scores(manifest))
    assert counts[DROPPED] / counts[KEPT] == pytest.approx(3, rel=0.05)


def test_kept_rows_are_stacked_on_dropped_ones_in_the_same_bin(manifest: dict[str, Any]) -> None:
    manifest["budget"]["threshold"] = None
    manifest["scores"]["histogram"] = {"edges": [0, 1], "kept": [100], "dropped": [100]}
    counts = pixels(plot_scores(manifest))
    assert counts[DROPPED] / counts[KEPT] == pytest.approx(1, rel=0.05)


def test_a_users_matplotlib_settings_do_not_change_the_plot_and_are_left_alone(manifest: dict[str, Any]) -> None:
    import matplotlib

    usual = plot_scores(manifest)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plot_scores(manifest) == usual
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("column", ["$x^{", "\u202eevil\n", "列" * 100, r"\frac{1}{0}$", ""])
def test_column_names_cannot_break_the_plot(manifest: dict[str, Any], column: str) -> None:
    manifest["selector"]["column"] = column
    assert plot_scores(manifest).startswith(b"\x89PNG")


def test_one_bin_and_empty_bins_can_be_drawn(manifest: dict[str, Any]) -> None:
    manifest["scores"]["histogram"] = {"edges": [0.5, 0.6], "kept": [0], "dropped": [0]}
    assert plot_scores(manifest).startswith(b"\x89PNG")


def test_without_a_histogram_there_is_nothing_to_plot(manifest: dict[str, Any]) -> None:
    manifest["scores"]["histogram"] = None
    with pytest.raises(ManifestError, match="no score histogram"):
        plot_scores(manifest)


def test_without_matplotlib_the_error_says_what_to_install(
    manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"the score plot needs .* pip install 'hf_curate\[plots\]'"):
        plot_scores(manifest)


def test_importing_and_plotting_load_neither_pyplot_nor_torch() -> None:
    pytest.importorskip("matplotlib")
    check = (
        "import json, sys; from hf_curate.plots.draw import plot_scores; assert 'matplotlib' not in sys.modules;"
        "plot_scores(json.load(open(sys.argv[1])));"
        "sys.exit(not {'matplotlib.pyplot', 'torch'}.isdisjoint(sys.modules))"
    )
    command = [sys.executable, "-c", check, str(GOLDENS / "manifest_grace.json")]
    assert subprocess.run(command, check=False).returncode == 0
