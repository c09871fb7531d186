"""A gradient as a file: one tensor for each parameter, in safetensors, with a record of what it is the gradient of."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_curate.errors import DirectionError
from hf_curate.gradients.inner import inner

SCHEMA = "hf_curate/direction/1"
SHOWN = 3


@dataclass
class Direction:
    """A gradient-shaped set of tensors. What it is compared with must have the same names and shapes.

    tensors: parameter name -> tensor, float32 or float64; record: JSON, what it is (kind, model, parameters, rows).
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def zeros(cls, parameters: Mapping[str, nn.Parameter]) -> Direction:
        """A sum to add gradients to, beside the parameters."""
        return cls({name: torch.zeros(p.shape, dtype=_wide(p), device=p.device) for name, p in parameters.items()})

    @property
    def norm(self) -> float:
        return sum(inner(tensor, tensor) for tensor in self.tensors.values()) ** 0.5

    def add(self, name: str, gradient: Tensor, share: float = 1.0) -> None:
        self.tensors[name].add_(gradient.to(self.tensors[name]), alpha=share)

    def divided(self, count: int) -> Direction:
        """This sum as a mean, in place."""
        for tensor in self.tensors.values():
            tensor.div_(max(count, 1))
        return self

    def check(self, parameters: Mapping[str, nn.Parameter], what: str = "the direction") -> None:
        """Raises DirectionError, with both shapes, unless it fits the parameters."""
        lacking = [name for name in parameters if name not in self.tensors]
        strange = [name for name in self.tensors if name not in parameters]
        if lacking or strange:
            parts = [f"it lacks {_listed(lacking)}"] if lacking else []
            parts += [f"it has {_listed(strange)}, which the model's set lacks"] if strange else []
            raise DirectionError(
                f"{what} has {len(self.tensors)} tensors and does not fit the {len(parameters)} parameters of this "
                f"model: {' and '.join(parts)}. Fit it again, or pass the parameters= it was made with."
            )
        for name, parameter in parameters.items():
            if self.tensors[name].shape != parameter.shape:
                raise DirectionError(
                    f"{what} does not fit this model: {name} is {tuple(self.tensors[name].shape)} in the direction "
                    f"and {tuple(parameter.shape)} in the model. Fit it again with this model."
                )
        for name, tensor in self.tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise DirectionError(f"{what} holds NaN or infinity in {name}: fit it again.")

    def beside(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The tensors on the devices of the parameters, in float32 (float64 for float64 parameters)."""
        return {name: self.tensors[name].to(device=p.device, dtype=_wide(p)) for name, p in parameters.items()}

    def save(self, path: str | Path) -> str:
        """Writes the file whole or not at all; returns its sha256. The record gains a digest of the tensors."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = Path(path).expanduser()
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in self.tensors.items()}
        self.record = {"schema": SCHEMA, **self.record, "tensors_sha256": _tensors_digest(plain)}
        name = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            save_file(plain, name, metadata={"hf_curate": json.dumps(self.record, sort_keys=True)})
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except (OSError, SafetensorError) as error:
            raise DirectionError(
                f"the direction {path.name!r} cannot be written ({error}): give another out=."
            ) from error
        finally:
            if name is not None:
                Path(name).unlink(missing_ok=True)
        return file_digest(path)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Reads a file that `save` wrote. Raises DirectionError for anything else."""
        from safetensors import SafetensorError, safe_open

        path = Path(path).expanduser()
        record = read_record(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        if any(tensor.dtype not in (torch.float32, torch.float64) for tensor in tensors.values()):
            raise DirectionError(f"the direction {path.name!r} holds something else than float32 and float64 tensors.")
        if record.get("tensors_sha256") not in (None, _tensors_digest(tensors)):
            raise DirectionError(
                f"the direction {path.name!r} is not what its record says (its tensors have changed): fit it again."
            )
        return cls(tensors, record)


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes. About 1 s per GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """The record of a direction file, without its tensors."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DirectionError(
            f"there is no direction file {path.name!r}: write one with scorer.fit(dataset, out=path)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("hf_curate", "null"))
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise DirectionError(
            f"{path.name!r} is not a direction of hf_curate: its schema is {schema!r}, not {SCHEMA!r}."
        )
    return record


def _unreadable(path: Path, error: Exception) -> DirectionError:
    return DirectionError(f"the direction {path.name!r} cannot be read ({error}): delete it and fit again.")


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
