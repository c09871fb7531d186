"""Every proxy, on every kind of block and head, against plain loops in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
import torch
from tolerances import GRAM, LOSS, SCORE
from torch import Tensor
from zoo import DENSE, ROWS, SPARSE, ZOO, batch, build, language_model

from hf_curate.gradients.alignment import alignments, step_scores
from hf_curate.gradients.parameters import parameters_of
from hf_curate.gradients.segments import exact_row, segment_grams

PROXIES = ("representation", "outer", "last", "exact")
CASES = [(name, proxy) for name in ZOO for proxy in PROXIES if proxy != "last" or name in DENSE]
DTYPES = (torch.float64, torch.float32)
HISTORIES = ("uniform", ("window", 1), ("window", 2), ("ema", 0.8))
TARGETS = ("answer", "steps+answer", "suffix")


@functools.cache
def expected(name: str, proxy: str) -> list[list[Tensor]]:
    """The gradient vectors of the segments of each row, from rows that were never padded or batched."""
    model, species = build(name), ZOO[name]
    ids, rows = batch()
    found = []
    for (length, _), row, spans in zip(ROWS, ids, rows, strict=True):
        if proxy in reference.PROXIES:
            found.append(reference.PROXIES[proxy](model, row[:length], spans))
            continue
        chosen = {
            "last": lambda: reference.last_parameters(model, species.block, species.last),
            "exact": lambda: reference.linear_parameters(model),
            "all": lambda: reference.all_parameters(model),
        }[proxy]()
        found.append(reference.of_parameters(model, row[:length], spans, chosen))
    return found


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Norm-wise relative error."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "proxy"), CASES)
def test_inner_products_of_a_padded_batch_equal_those_of_explicit_gradients(
    name: str, proxy: str, dtype: torch.dtype
) -> None:
    ids, rows = batch()
    grams = segment_grams(language_model(name, dtype), ids, rows, proxy)
    for (gram, _), vectors in zip(grams, expected(name, proxy), strict=True):
        assert gram.dtype == torch.float64
        assert distance(gram, reference.gram(vectors)) < GRAM[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", DENSE)
def test_losses_are_those_of_the_distinct_labels_in_order(name: str, proxy: str, dtype: torch.dtype) -> None:
    ids, rows = batch()
    grams = segment_grams(language_model(name, dtype), ids, rows, proxy)
    for (_, losses), (length, spans), row in zip(grams, ROWS, ids, strict=True):
        assert distance(losses, reference.losses(build(name), row[:length], spans)) < LOSS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "proxy"), CASES)
def test_step_scores_equal_the_loops_for_every_history_target_and_alpha(
    name: str, proxy: str, dtype: torch.dtype
) -> None:
    ids, rows = batch()
    grams = segment_grams(language_model(name, dtype), ids, rows, proxy)
    for (gram, _), vectors, spans in zip(grams, expected(name, proxy), rows, strict=True):
        tokens = [len(span) for span in spans]
        for history in HISTORIES:
            for target in TARGETS:
                for alpha in (0.0, 0.7, 1.0):
                    ours = step_scores(gram.numpy(), np.array(tokens), alpha=alpha, history=history, target=target)
                    loops = reference.scores(vectors, tokens, alpha=alpha, history=history, target=target)
                    assert np.abs(ours - loops).max() < SCORE[dtype], (history, target, alpha)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "phi", "mixtral"])
def test_alignment_and_consistency_equal_the_loops_one_by_one(name: str) -> None:
    ids, rows = batch()
    (gram, _), vectors = segment_grams(language_model(name), ids, rows, "outer")[0], expected(name, "outer")[0]
    tokens = [len(span) for span in rows[0]]
    for history in HISTORIES:
        for target in TARGETS:
            aligned, consistent = alignments(gram.numpy(), np.array(tokens), history=history, target=target)
            assert np.isnan(consistent[0])
            for k in range(1, len(tokens)):
                a = reference.alignment(k, vectors, tokens, target)
                assert aligned[k - 1] == pytest.approx(a, abs=SCORE[torch.float64])
                if k > 1:
                    h = reference.consistency(k, vectors, history)
                    assert consistent[k - 1] == pytest.approx(h, abs=SCORE[torch.float64])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(ZOO))
def test_exact_gradients_of_all_parameters_equal_autograd_segment_by_segment(name: str, dtype: torch.dtype) -> None:
    ids, _ = batch()
    vectors = expected(name, "all")
    for (length, spans), row, own in zip(ROWS, ids, vectors, strict=True):
        gram, _ = exact_row(language_model(name, dtype), row[:length], spans, "all")
        assert distance(gram, reference.gram(own)) < GRAM[dtype]


@pytest.mark.parametrize("name", list(ZOO))
def test_the_linear_set_holds_every_weight_matrix_but_the_head_and_the_embeddings(name: str) -> None:
    model = build(name)
    ours = {id(parameter) for parameter in parameters_of(model, "linear").values()}
    assert ours == {id(parameter) for parameter in reference.linear_parameters(model)}


@pytest.mark.parametrize("name", SPARSE)
def test_the_linear_set_of_a_sparse_model_holds_its_fused_experts_and_its_router(name: str) -> None:
    names = " ".join(parameters_of(build(name), "linear"))
    assert "experts.down_proj" in names
    assert "mlp.gate.weight" in names


def test_the_zoo_has_teeth() -> None:
    """Its gradients are neither parallel nor vanishing, and its softmax is neither uniform nor certain."""
    for name in ZOO:
        ids, rows = batch()
        (gram, losses), *_ = segment_grams(language_model(name), ids, rows, "representation")
        cosines = gram / gram.diag().sqrt() / gram.diag().sqrt()[:, None]
        apart = cosines - torch.eye(len(gram), dtype=gram.dtype)
        assert float(apart.abs().max()) < 0.98, name
        assert float(losses.std()) > 0.3, name
        assert float(gram.diag().min()) > 1e-3, name
