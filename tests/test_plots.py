"""The plots: small PNGs of the manifest's numbers, the same bytes for the same manifest."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden_selections
import pytest
from pools import plain

from hf_curate import select
from hf_curate.errors import ManifestError, MissingPackageError
from hf_curate.plots import draw
from hf_curate.plots.canvas import DROPPED, KEPT
from hf_curate.plots.draw import plot_scores

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(autouse=True)
def every_plot_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "plot", draw.plot.__wrapped__)  # of the fixture for all other tests


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


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    pytest.importorskip("matplotlib")
    return {name: getattr(golden_selections, name)().manifest for name in ("grace", "learnalign")}


OF = {"scores": "grace", "steps": "grace", "length": "grace", "pass_rate": "learnalign", "nested": "learnalign"}


@pytest.mark.parametrize("name", draw.PLOTS)
def test_each_plot_is_a_small_opaque_png_at_twice_the_width_of_a_card(
    manifests: dict[str, dict[str, Any]], name: str
) -> None:
    manifest = manifests[OF[name]]
    image = draw.PLOTS[name][0](manifest)
    assert image.startswith(b"\x89PNG\r\n")
    assert len(image) < 200_000
    assert b"Software" not in image
    assert image == draw.PLOTS[name][0](copy.deepcopy(manifest))
    picture = pytest.importorskip("PIL.Image").open(io.BytesIO(image))
    assert picture.width == 1400
    assert picture.convert("RGBA").getextrema()[3] == (255, 255)


def test_a_manifest_has_the_plots_that_it_has_numbers_for(manifests: dict[str, dict[str, Any]]) -> None:
    there = {name: [plot for plot in draw.PLOTS if draw.has(plot, one)] for name, one in manifests.items()}
    assert there["grace"] == ["scores", "steps", "length", "nested"]
    assert there["learnalign"] == ["scores", "length", "pass_rate", "nested"]
    old = json.loads((GOLDENS / "manifest_grace.json").read_text("utf-8"))
    assert [plot for plot in draw.PLOTS if draw.has(plot, old)] == ["scores"]


def test_bars_of_pass_rates_are_as_large_as_their_counts(manifests: dict[str, dict[str, Any]]) -> None:
    manifest = copy.deepcopy(manifests["learnalign"])
    counts = {"kept": [0] * 5 + [10] * 2 + [0] * 5, "dropped": [30] * 2 + [0] * 10}
    manifest["pass_rate"] |= counts | {"mean_score": [None] * 12}
    found = pixels(draw.plot("pass_rate", manifest))
    assert found[DROPPED] / found[KEPT] == pytest.approx(3, rel=0.05)


def test_the_darkest_step_is_the_best_one(manifests: dict[str, dict[str, Any]]) -> None:
    manifest = copy.deepcopy(manifests["grace"])
    for part, mean in (("kept", 0.9), ("dropped", 0.1)):
        manifest["steps"][part] = {"mean": [mean] * 10, "steps": [1] * 10}
    found = pixels(draw.plot("steps", manifest))
    assert found["#083d68"] == pytest.approx(found["#f3f5f8"], rel=0.1)
    assert found["#083d68"] > 100_000


@pytest.mark.parametrize("column", ["$x^{", "\u202eevil\n", "列" * 100, r"\frac{1}{0}$", ""])
def test_names_cannot_break_any_plot(manifests: dict[str, dict[str, Any]], column: str) -> None:
    manifest = copy.deepcopy(manifests["grace"])
    manifest["selector"]["column"] = column
    assert draw.plot("length", manifest).startswith(b"\x89PNG")


def test_one_row_and_equal_scores_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    manifest = select(golden_selections.traces(3, seed=1), golden_selections.Grace(), 1).manifest
    for name in draw.PLOTS:
        if draw.has(name, manifest):
            assert draw.plot(name, manifest).startswith(b"\x89PNG")
    one = select(plain([1.0, 1.0]), "score", 1).manifest
    assert not draw.has("nested", one)
