"""Inner products of sums of outer products, formed and not formed."""

from __future__ import annotations

import pytest
import torch
from tolerances import GRAM
from torch import Tensor

from hf_curate.gradients.gram import _by_matrices, _by_tokens, factored_gram
from hf_curate.gradients.upstream import Segments

SPANS = [[0, 1, 2], [2], [4, 5, 6, 7, 8], [1, 8]]


def layer(tokens: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, inputs, generator=generator, dtype=torch.float64),
        torch.randn(tokens, outputs, generator=generator, dtype=torch.float64),
    )


def explicit(pairs: list[tuple[Tensor, Tensor]], spans: list[list[int]]) -> Tensor:
    """The matrices themselves, in loops."""
    vectors = []
    for span in spans:
        parts = []
        for a, b in pairs:
            matrix = torch.zeros(b.shape[1], a.shape[1], dtype=torch.float64)
            for token in span:
                matrix += torch.outer(b[token], a[token]) / len(span)
            parts.append(matrix.flatten())
        vectors.append(torch.cat(parts))
    return torch.stack([torch.stack([left @ right for right in vectors]) for left in vectors])


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("budget", [1, 200, 2**20])
@pytest.mark.parametrize("widths", [(3, 4), (1, 1), (40, 2), (2, 40), (60, 60)])
def test_inner_products_equal_those_of_explicit_matrices(widths: tuple[int, int], budget: int) -> None:
    pairs = [layer(9, *widths), layer(9, widths[1], 5, seed=1)]
    assert distance(factored_gram(pairs, Segments.of(SPANS), budget), explicit(pairs, SPANS)) < GRAM[torch.float64]


@pytest.mark.parametrize("route", [_by_tokens, _by_matrices])
@pytest.mark.parametrize("budget", [1, 300, 2**20])
def test_both_routes_give_the_same_for_every_budget(route: object, budget: int) -> None:
    a, b = layer(9, 7, 11)
    gram = torch.zeros(4, 4, dtype=torch.float64)
    route(gram, a, b, Segments.of(SPANS), budget)  # type: ignore[operator]
    assert distance(gram, explicit([(a, b)], SPANS)) < GRAM[torch.float64]


def test_half_precision_is_widened_before_it_is_multiplied() -> None:
    a, b = (part.to(torch.bfloat16) for part in layer(9, 12, 12))
    gram = factored_gram([(a, b)], Segments.of(SPANS))
    assert gram.dtype == torch.float64
    assert distance(gram, explicit([(a.double(), b.double())], SPANS)) < GRAM[torch.float32]


def test_the_matrix_is_symmetric_to_the_bit() -> None:
    a, b = (part.float() for part in layer(50, 8, 8))
    gram = factored_gram([(a, b)], Segments.of([[i, i + 1, i + 7] for i in range(40)]), 1_000)
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("route", [_by_tokens, _by_matrices])
def test_a_segment_without_tokens_has_the_gradient_zero(route: object) -> None:
    a, b = layer(9, 3, 3)
    gram = torch.zeros(2, 2, dtype=torch.float64)
    route(gram, a, b, Segments.of([[0, 1], []]), 2**20)  # type: ignore[operator]
    assert float(gram[0, 0]) > 0
    assert gram[1].tolist() == gram[:, 1].tolist() == [0.0, 0.0]


def test_one_token_in_one_segment_gives_the_product_of_its_square_norms() -> None:
    a, b = layer(1, 6, 5)
    assert float(factored_gram([(a, b)], Segments.of([[0]]))) == pytest.approx(float((a @ a.T) * (b @ b.T)))


def test_no_layer_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no layer"):
        factored_gram([], Segments.of([[0]]))
