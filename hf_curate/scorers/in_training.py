"""What stands for the model in a scorer whose model is the policy in training, and what is trained of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from hf_curate.errors import ModelError
from hf_curate.weights import ModelSource

if TYPE_CHECKING:
    from torch import nn

    from hf_curate.models import LanguageModel

NAME = "the policy in training"


class Awaited(ModelSource):
    """In place of a model: the policy that an `OnlineSelector` brings. Nothing else can be asked of it."""

    def __init__(self, whose: str) -> None:
        super().__init__("awaited", NAME)
        self.whose = whose

    @property
    def base(self) -> ModelSource:
        raise ModelError(
            f"this {self.whose} was made without a model: give it one, {self.whose}(model, ...), or hand it to an "
            "OnlineSelector, which brings the policy that is trained."
        )

    @property
    def digest(self) -> str | None:
        return self.base.digest

    @property
    def label(self) -> str:
        return self.name


def trained(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """Name -> parameter of a set that is being trained; "all" are all of these, whatever lies frozen beside them.

    Raises ModelError where nothing of the set is trained.
    """
    from hf_curate.gradients.parameters import parameters_of

    named = dict(model.named_parameters()) if which == "all" else parameters_of(model, which)
    found = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not found:
        raise ModelError(
            f"{type(model).__name__} trains none of the parameters of the set {which!r}: parameters='all' are those "
            "that it trains."
        )
    return found


def policy_record(policy: LanguageModel) -> dict[str, Any]:
    """What a scorer's record says of the policy as it is now. digest: sha256 over the parameters that are trained
    (names, dtypes, shapes, bytes); what is frozen stays the same all through training. About 1 s per GB."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(policy.model.named_parameters()):
        if parameter.requires_grad:
            digest.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode())
            plain = parameter.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy().data)
    return {
        "id": NAME,
        "sha": None,
        "digest": digest.hexdigest(),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "architecture": type(policy.model).__name__,
        "warm_up": None,
    }
