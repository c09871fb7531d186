"""Puts the helpers that several test folders share on the import path."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "oracles")]
