"""Seeded random projection of a gradient, parameter by parameter, to features whose inner products estimate its own.

A matrix G [o, i] becomes P G Q^T with P [p, o] and Q [q, i] of independent signs, divided by sqrt(p) and sqrt(q):
<P G Q^T, P G' Q^T> has the expectation <G, G'>, and nothing of the size of G beside G is ever made. Parameters of at
most `dim` values are kept whole. The signs depend on the seed, the parameter's name and its shape alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Projection:
    """Maps the gradient of each parameter to at most `dim` float32 features.

    Args:
        parameters: name -> parameter, in the order of the features.
        dim: features for each parameter (a matrix gets p * q <= dim with p and q as equal as its shape allows).
        seed: of the signs.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], dim: int, seed: int = 0) -> None:
        self.dim, self.seed = dim, seed
        self._sides: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        self._places: dict[str, slice] = {}
        start = 0
        for name, parameter in parameters.items():
            rows, columns = _as_matrix(parameter.shape)
            p, q = sides(rows, columns, dim)
            left = None if p == rows else self._signs(f"{name}/left", p, rows, parameter.device)
            right = None if q == columns else self._signs(f"{name}/right", q, columns, parameter.device)
            self._sides[name] = (left, right)
            self._places[name] = slice(start, start + p * q)
            start += p * q
        self.size = start

    def _signs(self, what: str, wide: int, long: int, device: torch.device) -> Tensor:
        """[wide, long] of +-1/sqrt(wide), drawn on the CPU so that every device gets the same."""
        text = f"{self.seed}/{what}/{wide}x{long}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
        signs = torch.randint(0, 2, (wide, long), generator=generator, dtype=torch.int8)
        return ((signs * 2 - 1).float() / math.sqrt(wide)).to(device)

    def into(self, features: Tensor, name: str, gradient: Tensor) -> None:
        """Writes the features of one parameter's gradient to their place in `features` [size]."""
        matrix = gradient.float().reshape(_as_matrix(gradient.shape))
        left, right = self._sides[name]
        if left is not None:
            matrix = left @ matrix
        if right is not None:
            matrix = matrix @ right.T
        features[self._places[name]] = matrix.reshape(-1).to(features)


def sides(rows: int, columns: int, dim: int) -> tuple[int, int]:
    """(p, q) with p <= rows, q <= columns and p * q <= max(dim, 1), as large and as equal as that allows."""
    if rows * columns <= dim:
        return rows, columns
    p = min(rows, max(1, math.isqrt(dim)))
    q = min(columns, max(1, dim // p))
    return min(rows, max(1, dim // q)), q


def _as_matrix(shape: torch.Size) -> tuple[int, int]:
    """A vector is one row; a stack of matrices (fused experts) has the rows of all of them."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return math.prod(shape[:-1]), shape[-1]
