"""A scorer made again from what a manifest says of it: class, settings, model. No other code is ever called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hf_curate
from hf_curate.errors import CurateError, ModelError

SETTLED_ELSEWHERE = ("columns", "tokenizer_sha256", "direction", "rollouts", "trained")


class CannotRebuild(Exception):  # noqa: N818 - a reason, not an error: a verdict says it
    """Why a scorer cannot be made again."""


def model_for(manifest: Mapping[str, Any], folder: str | Path | None) -> tuple[str, str | None]:
    """(model, revision) to score with: the pinned commit of a Hub model, or a folder with the recorded weights.

    CannotRebuild: a local model, and no folder was given. ModelError: the folder holds other weights.
    """
    from hf_curate.weights import ModelSource

    record = manifest.get("model") or {}
    name, sha, digest = (record.get(key) for key in ("id", "sha", "digest"))
    if sha and name:
        if folder is None:
            return str(name), str(sha)
        raise ModelError(
            f"model={Path(folder).name!r} was given, and the manifest names {name}@{str(sha)[:7]}, whose weights a "
            "folder cannot be told to be: leave model= away."
        )
    if not digest:
        raise CannotRebuild("the manifest pins no model: neither a commit nor a digest of its weights")
    if folder is None:
        raise CannotRebuild(f"{name} is a local model: give its folder with model= (--model FOLDER)")
    source = ModelSource.of(folder)
    found = source.digest or source.commit
    if found != digest:
        raise ModelError(
            f"model={Path(folder).name!r} has the digest {str(found)[:12]}, and the manifest names {str(digest)[:12]}"
            ": give the weights that scored."
        )
    return str(folder), None


def scorer_of(manifest: Mapping[str, Any], folder: str | Path | None, direction: str | Path | None) -> Any:
    """The scorer of a manifest; with the same identity, where a choice of arguments has it.

    CannotRebuild: it is none of ours, or needs what was not given. CurateError: what was given does not fit.
    """
    selector = manifest["selector"]
    name, settings = selector.get("class"), dict(selector.get("settings") or {})
    if not isinstance(name, str) or not name.endswith("Scorer") or name not in hf_curate.__all__:
        raise CannotRebuild(f"{name or selector.get('name')} is no scorer of this version of hf_curate")
    make = getattr(hf_curate, name)
    known = inspect.signature(make.__init__).parameters
    given = {key: value for key, value in settings.items() if key in known and key not in SETTLED_ELSEWHERE}
    if "prefer" in known:
        given["prefer"] = str(selector["column"]).partition("_")[0]
    if isinstance(given.get("history"), list):
        given["history"] = tuple(given["history"])
    if "split_steps" in given and not str(given["split_steps"]).isidentifier():
        raise CannotRebuild(f"steps were split by {given['split_steps']}, which no name calls")
    if "model" in known:
        given |= _model(manifest, known, folder)
    elif folder is not None:
        raise CurateError(f"model={Path(folder).name!r} was given, and {name} reads no model: leave it away.")
    if "direction" in known:
        if direction is None:
            raise CannotRebuild("its direction is a file of its own: give it with direction= (--direction FILE)")
        given["direction"] = direction
    made = [make(**given), make(**given, **_columns(settings, known))]
    return next((one for one in made if one.identity == selector.get("identity")), made[-1])


def _model(manifest: Mapping[str, Any], known: Mapping[str, Any], folder: str | Path | None) -> dict[str, Any]:
    if not manifest.get("model"):  # scorers that read a tokenizer and no weights
        if folder is None:
            raise CannotRebuild("the manifest names no model, whose tokenizer it reads: give it with model= (--model)")
        return {"model": folder}
    model, revision = model_for(manifest, folder)
    found: dict[str, Any] = {"model": model, "revision": revision}
    dtype = manifest["model"].get("dtype")
    return {**found, "dtype": dtype} if "dtype" in known and dtype else found


def _columns(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """The columns that were read, by role."""
    found = settings.get("columns")
    found = found if isinstance(found, Mapping) else {}
    named = {role: name for role, name in found.items() if role in known and isinstance(name, str)}
    if found.get("hashes"):  # found without a name; named, it would be read in another way
        named.pop("completion", None)
        named.pop("prompt", None)
    return named


def differs(manifest: Mapping[str, Any], scorer: Any) -> str:
    """In what the rebuilt scorer is another one than the manifest's; "" where it is the same."""
    selector, record = manifest["selector"], scorer.record()
    if scorer.identity == selector.get("identity"):
        return ""
    if record.get("algorithm_version") != selector.get("algorithm_version"):
        return f"algorithm version {selector.get('algorithm_version')}, now {record.get('algorithm_version')}"
    before, now = dict(selector.get("settings") or {}), dict(record.get("settings") or {})
    names = [name for name in {**before, **now} if name != "columns" and before.get(name) != now.get(name)]
    told = [f"{name} {str(before.get(name))[:60]}, now {str(now.get(name))[:60]}" for name in names[:3]]
    return "; ".join(told) or "the columns that were asked for are not recorded"
