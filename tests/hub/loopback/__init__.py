"""A Hugging Face Hub on 127.0.0.1: what the real clients call, kept in a folder, with faults on demand.

``python -m tests.hub.loopback --port 8765 --folder ./hub`` serves one by hand.
"""

from __future__ import annotations

from .faults import Access, Fault, Leak
from .server import LoopbackHub
from .store import Commit, Entry

__all__ = ["Access", "Commit", "Entry", "Fault", "Leak", "LoopbackHub"]
