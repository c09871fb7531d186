"""The exceptions of hf_curate: what is wrong, why (with both values), what to type.

Everything a caller may want to catch derives from `CurateError`, which is a `ValueError`.
`RowError` never reaches the caller of a scorer: it becomes the `<name>_error` text of one row.
"""

from __future__ import annotations

from typing import Any


class CurateError(ValueError):
    """Base of every error that hf_curate raises on purpose."""


class ColumnsError(CurateError):
    """The columns of a dataset cannot be read as reasoning rows, or could be read in more than one way."""


class ModelError(CurateError):
    """A model or tokenizer cannot be loaded, or cannot be scored with."""


class DirectionError(CurateError):
    """A gradient direction that is missing, cannot be read, does not fit the model, or has no signal."""


class NoSignalError(DirectionError):
    """No problem to take a direction from is solved by some rollouts and not by others."""


class ScoreError(CurateError):
    """Scoring as a whole makes no sense: an empty dataset, or no row that could be scored."""


class BudgetError(CurateError):
    """A budget that cannot be read, or that the dataset cannot fill."""


class ConfigNameError(CurateError):
    """A config or split name that the Hub or `datasets` could not load back."""


class ManifestError(CurateError):
    """A manifest that is missing, of another schema, or that cannot be read."""


class HubError(CurateError):
    """The Hub refused, gave no clear answer, or holds something else than was sent."""


class MissingPackageError(CurateError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'hf_curate[{extra}]'")
        self._given = (package, extra, purpose)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class RowError(Exception):
    """One row cannot be scored. `kind` groups the failures of a run, `detail` speaks of this row.

    The text is `"kind: detail"`, or `"kind"` alone; manifests count rows by the part before the first colon.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(f"{kind}: {detail}" if detail else kind)
