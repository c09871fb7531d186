"""Blocks that keep their input alone and compute the rest again in the backward pass.

Large problems fit into one backward this way, so that each parameter's gradient is whole when it appears and can be
reduced and dropped. It costs one more forward, and changes no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(decoder: nn.Module) -> list[nn.Module]:
    """The decoder's transformer blocks, in order: the longest of its own lists of modules, else the first list
    anywhere in it; [] where there is none."""
    stacks = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child)]
    if not stacks:
        stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m)][:1]
    return list(max(stacks, key=len)) if stacks else []


@contextmanager
def recomputing(blocks: list[nn.Module]) -> Iterator[None]:
    """Around a forward and its backward."""
    own = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.forward = _again(block.forward)
        yield
    finally:
        for block, before in own:
            if before is None:
                del block.forward
            else:
                block.forward = before


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
