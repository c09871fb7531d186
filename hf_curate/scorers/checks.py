"""Checks of constructor arguments that several scorers share."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from hf_curate.errors import CurateError


def checked_number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise CurateError(f"{name}={value!r} must be a finite number.")
    return float(value)


def checked_count(value: Any, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise CurateError(f"{name}={value!r} must be a whole number from 1 on, or None.")
    return value


def checked_seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CurateError(f"seed={value!r} is not a whole number from 0 on: seed=0.")
    return value
