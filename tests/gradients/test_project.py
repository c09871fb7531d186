"""Projections of gradients: sizes, what is kept whole, linearity, and inner products that are right on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rollouts import policy
from torch import Tensor, nn

from hf_curate.gradients.parameters import parameters_of
from hf_curate.gradients.project import Projection, sides

SHAPES = {
    "small": (3, 2),
    "square": (24, 24),
    "wide": (2, 90),
    "tall": (90, 2),
    "vector": (70,),
    "experts": (4, 6, 12),
    "number": (),
}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(shape, dtype=dtype)) for name, shape in SHAPES.items()}


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def projected(projection: Projection, gradient: dict[str, Tensor]) -> Tensor:
    features = torch.zeros(projection.size)
    for name, value in gradient.items():
        projection.into(features, name, value)
    return features


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000), dim=st.integers(1, 5000))
def test_a_matrix_gets_at_most_dim_features_and_as_many_as_its_shape_lets(rows: int, columns: int, dim: int) -> None:
    p, q = sides(rows, columns, dim)
    assert 1 <= p <= rows
    assert 1 <= q <= columns
    assert p * q <= dim
    if rows * columns <= dim:
        assert (p, q) == (rows, columns)
    else:
        assert (p + 1) * q > dim or p == rows
        assert p * (q + 1) > dim or q == columns


def test_parameters_of_at_most_dim_values_are_kept_whole_and_in_order() -> None:
    projection, gradient = Projection(parameters(), 72), drawn(0)
    features = projected(projection, gradient)
    assert projection.size == len(features) == 6 + 3 * 72 + 70 + 72 + 1
    assert torch.equal(features[:6], gradient["small"].flatten())
    assert torch.equal(features[222:292], gradient["vector"])
    assert features[-1] == gradient["number"]
    whole = Projection(parameters(), 10_000)
    assert torch.equal(projected(whole, gradient), torch.cat([value.flatten() for value in gradient.values()]))


def test_a_projection_is_linear_and_writes_to_its_own_place_alone() -> None:
    projection, one, other = Projection(parameters(), 16), drawn(1), drawn(2)
    mixed = {name: 2 * one[name] - 3 * other[name] for name in one}
    expected = 2 * projected(projection, one) - 3 * projected(projection, other)
    torch.testing.assert_close(projected(projection, mixed), expected, rtol=1e-4, atol=1e-4)
    alone = projected(projection, {"wide": one["wide"]})
    assert len(alone.nonzero()) == 16
    full = projected(projection, one)
    assert torch.equal(full[alone != 0], alone[alone != 0])


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("small", "number")])
def test_inner_products_are_unbiased_shape_by_shape(name: str) -> None:
    own = {name: parameters()[name]}
    one, other = drawn(3)[name].double(), drawn(4)[name].double()
    other = other + 0.7 * one
    exact, found = float((one * other).sum()), []
    for seed in range(400):
        projection = Projection(own, 16, seed)
        found.append(float(projected(projection, {name: one}) @ projected(projection, {name: other})))
    error = np.std(found, ddof=1) / 20
    assert abs(np.mean(found) - exact) < 4 * error
    assert error < 0.15 * float(one.norm() * other.norm())


def test_the_spread_of_inner_products_falls_with_more_features() -> None:
    one, other = drawn(5), drawn(6)
    spreads = []
    for dim in (4, 36, 324):
        found = []
        for seed in range(60):
            projection = Projection({"square": parameters()["square"]}, dim, seed)
            left, right = (projected(projection, {"square": gradient["square"]}) for gradient in (one, other))
            found.append(float(left @ right))
        spreads.append(np.std(found))
    assert spreads[0] > 1.5 * spreads[1] > 2.0 * spreads[2]


def test_seed_name_and_shape_alone_decide_and_the_dtype_does_not() -> None:
    gradient = drawn(7, torch.float64)
    first = projected(Projection(parameters(), 16, 3), gradient)
    assert torch.equal(first, projected(Projection(parameters(torch.float64), 16, 3), gradient))
    torch.manual_seed(99)
    torch.rand(5)
    before = torch.get_rng_state()
    assert torch.equal(first, projected(Projection(parameters(), 16, 3), gradient))
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is not drawn from"
    assert not torch.equal(first, projected(Projection(parameters(), 16, 4), gradient))
    renamed = Projection({"other": parameters()["square"]}, 16, 3)
    same = Projection({"square": parameters()["square"]}, 16, 3)
    assert not torch.equal(
        projected(renamed, {"other": gradient["square"]}), projected(same, {"square": gradient["square"]})
    )


def test_the_features_of_a_seed_stay_what_they_are_from_version_to_version() -> None:
    projection = Projection({"weight": nn.Parameter(torch.zeros(6, 8))}, 4, 0)
    features = projected(projection, {"weight": torch.arange(48.0).reshape(6, 8).square()})
    assert features.tolist() == pytest.approx([-6162.0, 2224.0, 398.0, -336.0], abs=0.01)


def test_a_models_matrices_get_dim_features_each_and_the_rest_at_most() -> None:
    chosen = parameters_of(policy(), "all")
    projection = Projection(chosen, 64)
    assert projection.size == sum(min(64, parameter.numel()) for parameter in chosen.values())
