"""Blocks that run again in the backward: the same numbers, each block twice, forwards as they were before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_curate.gradients.recompute import blocks_of, recomputing

sys.path.append(str(Path(__file__).parents[1] / "oracles"))  # pytest does so only where that folder is collected
from zoo import ZOO, language_model


class Block(nn.Module):
    """Counts its runs; `shift` is a keyword that changes what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.runs = 0

    def forward(self, hidden: Tensor, *, shift: float = 0.0) -> tuple[Tensor, None]:
        self.runs += 1
        return hidden + torch.tanh(self.inner(hidden) + shift), None


class Decoder(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(blocks)])

    def forward(self, hidden: Tensor) -> Tensor:
        for number, block in enumerate(self.layers):
            hidden, _ = block(hidden, shift=0.1 * number)
        return hidden


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().double()


def gradients(decoder: Decoder) -> list[Tensor]:
    given = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
    return list(torch.autograd.grad(decoder(given).square().sum(), list(decoder.parameters())))


def runs(decoder: Decoder) -> list[int]:
    return [block.runs for block in decoder.layers]  # type: ignore[misc]


@pytest.mark.parametrize("name", ZOO)
def test_the_blocks_of_a_model_are_its_layers_in_order(name: str) -> None:
    model = language_model(name, torch.float32)
    blocks = blocks_of(model.decoder)
    assert len(blocks) == model.model.config.num_hidden_layers == 2
    assert model.model.get_submodule(ZOO[name].block) is blocks[1]
    assert len({type(block) for block in blocks}) == 1


def test_the_longest_own_list_is_the_stack_and_without_one_the_first_further_in() -> None:
    outer = nn.Module()
    outer.norms = nn.ModuleList([nn.LayerNorm(4)])
    outer.layers = nn.ModuleList([Block(), Block()])
    assert blocks_of(outer) == list(outer.layers)
    deep = nn.Module()
    deep.inside = Decoder(2)
    assert blocks_of(deep) == list(deep.inside.layers)
    assert blocks_of(nn.Linear(2, 2)) == []
    empty = nn.Module()
    empty.layers = nn.ModuleList()
    assert blocks_of(empty) == []


def test_gradients_are_the_same_to_the_bit_and_every_block_runs_twice(decoder: Decoder) -> None:
    wanted = gradients(decoder)
    assert runs(decoder) == [1, 1, 1]
    with recomputing(blocks_of(decoder)):
        found = gradients(decoder)
    assert runs(decoder) == [3, 3, 3]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with recomputing(blocks_of(decoder)[1:2]):
        gradients(decoder)
    assert runs(decoder) == [4, 5, 4], "no block but the given ones"
    with recomputing([]):
        gradients(decoder)
    assert runs(decoder) == [5, 6, 5]


def test_between_the_passes_a_block_keeps_what_it_was_given_alone(decoder: Decoder) -> None:
    given = torch.ones(50, 4, dtype=torch.float64)

    def kept(blocks: list[nn.Module]) -> int:
        """Values that the graph holds, without parameters."""
        held: dict[int, int] = {}
        weights = {parameter.data_ptr() for parameter in decoder.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                held[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), recomputing(blocks):
            decoder(given)
        return sum(held.values())

    assert kept([]) == 6 * given.numel(), "inputs and hyperbolic tangents"
    assert kept(blocks_of(decoder)) == 3 * given.numel()


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_forwards_are_as_before_after_an_exception_too(decoder: Decoder, way: str) -> None:
    def own(hidden: Tensor, **options: Any) -> tuple[Tensor, None]:
        return Block.forward(decoder.layers[1], hidden, **options)  # type: ignore[arg-type]

    decoder.layers[1].forward = own  # as wrappers of a model leave it
    before = [dict(block.__dict__) for block in decoder.layers]
    with recomputing(blocks_of(decoder)):
        assert all("forward" in block.__dict__ for block in decoder.layers)
        gradients(decoder)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of something")

    if way == "forward":
        decoder.layers[2].register_forward_hook(fail)
    else:
        decoder.layers[0].inner.weight.register_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="out of something"), recomputing(blocks_of(decoder)):
        gradients(decoder)
    after = [dict(block.__dict__) for block in decoder.layers]
    assert [block.get("forward") for block in after] == [block.get("forward") for block in before] == [None, own, None]
    assert ["forward" in block for block in after] == [False, True, False]


def test_without_gradients_no_block_runs_twice(decoder: Decoder) -> None:
    with torch.no_grad(), recomputing(blocks_of(decoder)):
        decoder(torch.ones(2, 4, dtype=torch.float64))
    assert runs(decoder) == [1, 1, 1]
