"""verify_curated(): a config held against everything that it claims and that can be looked at from here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_curate.errors import CurateError
from hf_curate.hub.card import Card
from hf_curate.hub.files import CARD_ERRORS, plot_name
from hf_curate.hub.resolve import UNREACHABLE, dataset_commit
from hf_curate.plots.draw import PLOTS, has
from hf_curate.recheck import checks
from hf_curate.recheck.verdicts import Verdicts

if TYPE_CHECKING:
    from hf_curate.selection import Selection


def verify_curated(
    repo_or_folder: str | Path,
    config_name: str,
    *,
    split: str | None = None,
    revision: str | None = None,
    source: str | None = None,
    model: str | Path | None = None,
    direction: str | Path | None = None,
    rows: int = 32,
    seed: int = 0,
    tolerance: float | None = None,
) -> Verdicts:
    """Checks what a config says of itself.

    Args:
        repo_or_folder, config_name, split, revision: as `load_curated` takes them.
        source: the rows it was chosen from, where the manifest names a file of another machine: a file here, or
            "org/name@revision:config/split".
        model: the folder of a model that the manifest knows by the digest of its weights; others are refused.
        direction: the file of the direction, for scorers that have one.
        rows: rows that are scored and judged again, drawn at random; 0 leaves that out.
        seed: of the draw.
        tolerance: how far a score may be from the recorded one, of a score of 1. None: 1e-4 in float32, 0.02 in 16
            bits.

    Returns:
        A verdict on each claim: verified, failed, or not checked and why. `.ok` is whether none failed.

    Raises:
        ManifestError, HubError: the config cannot be loaded. ModelError: the folder holds other weights.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise CurateError(f"rows={rows!r} must be a whole number from 0 on.")
    picked, readme, root = _loaded(repo_or_folder, config_name, split, revision)
    verdicts = Verdicts(f"{config_name}, split {picked.manifest.get('split')}")
    verdicts.say("manifest", True, f"{picked.manifest['schema']}, {picked.manifest['rows']['kept']:,} rows")
    checks.check_data(picked, verdicts)
    checks.check_source(picked, source, verdicts)
    checks.check_budget(picked, verdicts)
    checks.check_summary(picked, verdicts)
    if rows:
        some = checks.sample(picked, rows, seed)
        checks.check_scores(picked, some, model, direction, tolerance, verdicts)
        checks.check_verification(picked, some, verdicts)
    else:
        verdicts.leave("scores", "rows=0: nothing was scored again")
    if picked.manifest.get("training"):
        verdicts.leave("training", "a recorded run is told as it was handed in")
    checks.check_card(readme, _card(picked.manifest, root, repo_or_folder), verdicts)
    return verdicts


def _loaded(
    repo_or_folder: str | Path, config_name: str, split: str | None, revision: str | None
) -> tuple[Selection, str | None, Path]:
    """The selection, the README, and the folder that both lie in, all of one commit."""
    from hf_curate.hub.load import check_repo_id, load_curated

    path = Path(repo_or_folder).expanduser()
    commit = None
    if not path.is_dir():
        check_repo_id(str(repo_or_folder))
        commit, _ = dataset_commit(str(repo_or_folder), revision or "main")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a verdict says what data and manifest disagree about
        picked = load_curated(repo_or_folder, config_name, split=split, revision=commit or revision)
    if path.is_dir():
        return picked, _text(path / "README.md"), path
    return picked, _text(_readme(str(repo_or_folder), commit)), path


def _readme(repo_id: str, commit: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=commit))
    except UNREACHABLE:
        return None


def _text(readme: Path | None) -> str | None:
    try:
        return None if readme is None else readme.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _card(manifest: Mapping[str, Any], root: Path, place: str | Path) -> str | None:
    """The section as it would be written where the config lies."""
    config, split = manifest["config_name"], manifest["split"]
    there = {name: f"{config}/{plot_name(split, name)}" for name in PLOTS}
    local = root.is_dir()
    try:
        plots = {n: path for n, path in there.items() if ((root / path).is_file() if local else has(n, manifest))}
    except CARD_ERRORS:
        return None
    try:
        return Card(manifest, plots, repo_id=None if local else str(place)).render()
    except CARD_ERRORS:
        return None
