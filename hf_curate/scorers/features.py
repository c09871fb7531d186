"""Projected policy gradients of a pool as files: safetensors shards, an index with a record, and the mean direction.

A row is found again by a digest of its tokens and rewards, so scoring the pool that was fitted needs no gradient; rows
that are not there are projected when they are scored. The features can be read by anything that reads safetensors:
`features` [n, D] float32 beside `learnability` [n], `norms` [n] (of the features) and `keys` [n, 32].
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_curate.errors import DirectionError, RowError
from hf_curate.gradients.directions import file_digest
from hf_curate.models import evaluating
from hf_curate.scorers.fitting import Counts, advantages, has_signal, no_signal, read_groups
from hf_curate.scorers.groups import Group
from hf_curate.scorers.policy import Fitted

if TYPE_CHECKING:
    import torch

    from hf_curate.gradients.project import Projection
    from hf_curate.models import LanguageModel
    from hf_curate.scorers.learnalign import LearnAlignScorer

logger = logging.getLogger("hf_curate")

SCHEMA = "hf_curate/features/1"
INDEX = "index.json"
MEAN = "mean.safetensors"
SHARD_BYTES = 256 * 2**20


def row_key(group: Group) -> bytes:
    """32 bytes: sha256 over the tokens and rewards of a problem."""
    what = [[r.start, r.input_ids] for r in group.rollouts], group.rewards.tolist()
    return hashlib.sha256(json.dumps(what).encode()).digest()


def projection_of(scorer: LearnAlignScorer, model: LanguageModel) -> Projection:
    from hf_curate.gradients.project import Projection

    assert scorer.projection_dim is not None
    return Projection(scorer.chosen(model), scorer.projection_dim, scorer.seed)


def features_of(
    scorer: LearnAlignScorer, model: LanguageModel, projection: Projection, group: Group
) -> torch.Tensor | None:
    """[D] float32 on the CPU: a problem's projected policy gradient, None where it cancels. Raises RowError."""
    import torch

    from hf_curate.gradients.inner import streamed
    from hf_curate.gradients.policy import within

    def work(batch_tokens: int) -> torch.Tensor | None:
        features = torch.zeros(projection.size, device=model.device)
        alive = streamed(
            model,
            group.rollouts,
            advantages(group.rewards).tolist(),
            scorer.chosen(model),
            lambda name, gradient: projection.into(features, name, gradient),
            batch_tokens=batch_tokens,
        )
        if not bool(torch.isfinite(features).all()):
            raise RowError("not finite", "the gradient of this problem overflows")
        return features.cpu() if alive else None

    return within(scorer.token_budget(model), model, group.rollouts, work)


def write_features(
    scorer: LearnAlignScorer, model: LanguageModel, dataset: Any, path: Path, key: str, said: Mapping[str, Any]
) -> None:
    """One pass over the pool: features of every problem with learnability, and the mean of V phi / |phi|."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    projection, counts = projection_of(scorer, model), Counts(scorer.correct_above)
    mean = torch.zeros(projection.size, dtype=torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        writer = _Shards(folder, projection.size)
        for item in read_groups(scorer.reader, dataset, "projecting policy gradients"):
            value = 0.0 if isinstance(item, RowError) else scorer.learnability(item.rewards)
            if isinstance(item, RowError) or not (value and has_signal(item.rewards)):
                counts.see(item)
                continue
            try:
                features = features_of(scorer, model, projection, item)
            except RowError as error:
                counts.see(error)
                continue
            norm = 0.0 if features is None else float(features.double().norm())
            counts.see(item, norm > 0.0)
            if features is not None and norm > 0.0:
                mean += features.double() * (value / norm)
                writer.add(row_key(item), value, norm, features)
        shards = writer.close()
        record = counts.record()
        if not counts.with_signal:
            raise DirectionError(no_signal(scorer.kind, record))
        mean /= counts.readable
        save_file({"mean": mean}, folder / MEAN)
        told = {**scorer._describe(key, record, scorer.chosen(model)), **said, "norm": float(mean.norm())}
        told |= {"features": projection.size}
        index = {"schema": SCHEMA, "record": told, "mean_sha256": file_digest(folder / MEAN), "shards": shards}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        folder.chmod(0o755)
        try:
            folder.rename(path)
        except OSError:  # another process was first
            if not path.is_dir() or read_index(path)["record"].get("key") != key:
                raise
    except (OSError, SafetensorError) as error:
        raise DirectionError(
            f"the features cannot be written to {path.name!r} ({error}): give another out=."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info("%s features of %s rows -> %s", f"{projection.size:,}", f"{counts.with_signal:,}", path)


class _Shards:
    """Collects rows and writes a file whenever there is enough."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.most = folder, max(1, SHARD_BYTES // (4 * size))
        self.rows: list[tuple[bytes, float, float, torch.Tensor]] = []
        self.shards: list[dict[str, Any]] = []

    def add(self, key: bytes, value: float, norm: float, features: torch.Tensor) -> None:
        self.rows.append((key, value, norm, features))
        if len(self.rows) >= self.most:
            self._write()

    def close(self) -> list[dict[str, Any]]:
        if self.rows:
            self._write()
        return self.shards

    def _write(self) -> None:
        import torch
        from safetensors.torch import save_file

        name = f"features-{len(self.shards):05d}.safetensors"
        keys, values, norms, features = zip(*self.rows, strict=True)
        tensors = {
            "keys": torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32).copy()),
            "learnability": torch.tensor(values, dtype=torch.float32),
            "norms": torch.tensor(norms, dtype=torch.float32),
            "features": torch.stack(features),
        }
        save_file(tensors, self.folder / name)
        self.shards.append({"file": name, "rows": len(self.rows), "sha256": file_digest(self.folder / name)})
        self.rows = []


class FeatureStore:
    """A folder of features, read back."""

    def __init__(self, fitted: Fitted) -> None:
        from safetensors.torch import load_file

        folder = fitted.path
        assert folder is not None  # features are files
        index = read_index(folder)
        self.fitted, self.folder, self.record = fitted, folder, index["record"]
        if fitted.sha256 is not None and file_digest(folder / INDEX) != fitted.sha256:
            raise DirectionError(f"{folder.name!r} has changed since the scorer was made: make the scorer again.")
        if fitted.key is not None and self.record.get("key") != fitted.key:
            raise DirectionError(f"{folder.name!r} has changed since the scorer was fitted: fit it again.")
        try:
            digests = {MEAN: index.get("mean_sha256")} | {s["file"]: s.get("sha256") for s in index["shards"]}
            changed = [name for name, known in digests.items() if file_digest(folder / name) != known]
            self.mean = load_file(folder / MEAN)["mean"]
            self._places = self._read_keys(index["shards"])
        except Exception as error:  # safetensors raises its own kind, OSError and KeyError for damaged files
            raise DirectionError(f"the features in {folder.name!r} cannot be read ({error}): fit again.") from error
        if changed:
            raise DirectionError(f"{changed[0]} in {folder.name!r} has changed since it was written: fit again.")
        self._files: dict[str, Any] = {}
        self._projection: tuple[LanguageModel, Projection] | None = None

    def _read_keys(self, shards: list[Mapping[str, Any]]) -> dict[bytes, tuple[str, int]]:
        from safetensors import safe_open

        places = {}
        for shard in shards:
            with safe_open(self.folder / shard["file"], framework="np") as file:
                keys = file.get_tensor("keys")
            places |= {row.tobytes(): (shard["file"], index) for index, row in enumerate(keys)}
        return places

    def product(self, scorer: LearnAlignScorer, group: Group, rank: int | None) -> float:
        """<phi / |phi|, mean> of one problem, from the files or afresh."""
        features = self._stored(row_key(group))
        if features is None:
            features = self._fresh(scorer, group, rank)
        if features is None:
            return 0.0
        wide = features.double()
        norm = float(wide.norm())
        return float(wide @ self.mean) / norm if norm else 0.0

    def _stored(self, key: bytes) -> torch.Tensor | None:
        from safetensors import safe_open

        if key not in self._places:
            return None
        name, index = self._places[key]
        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, framework="pt")
        return self._files[name].get_slice("features")[index]

    def _fresh(self, scorer: LearnAlignScorer, group: Group, rank: int | None) -> torch.Tensor | None:
        model = scorer.load(rank)
        if self._projection is None or self._projection[0] is not model:
            self._projection = (model, projection_of(scorer, model))
        with evaluating(model.model):
            return features_of(scorer, model, self._projection[1], group)


def read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DirectionError(
            f"{folder.name!r} holds no projected features ({type(error).__name__}): scorer.fit(dataset, out=folder)."
        ) from error
    schema = index.get("schema") if isinstance(index, dict) else None
    if schema != SCHEMA:
        raise DirectionError(f"{folder.name!r} has the schema {schema!r}, expected {SCHEMA!r}: fit it again.")
    if not isinstance(index.get("record"), dict) or not isinstance(index.get("shards"), list):
        raise DirectionError(f"the {INDEX} of {folder.name!r} is not complete: delete the folder and fit again.")
    return index
