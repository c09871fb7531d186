"""A scorer in plain Python, as slow as a test wants it, and rows for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

LONGEST = 20


class Lengths:
    """Scores a text by its length; one without letters has no score.

    on_batch is called with each batch before it is scored.
    """

    column = "length_value"
    columns = Features(
        {"length_value": Value("float32"), "length_codes": List(Value("int32")), "length_error": Value("string")}
    )

    def __init__(
        self, scale: float = 1.0, seconds: float = 0.0, on_batch: Callable[[list[str]], None] | None = None
    ) -> None:
        self.scale, self.seconds, self.on_batch = scale, seconds, on_batch
        self.seen: list[int] = []

    @property
    def identity(self) -> str:
        return f"lengths-{self.scale}"

    def record(self) -> dict[str, Any]:
        return {"name": "Lengths", "settings": {"scale": self.scale}}

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        texts = list(rows["text"])
        if self.on_batch is not None:
            self.on_batch(texts)
        time.sleep(self.seconds)
        self.seen.append(len(texts))
        return {
            "length_value": [len(text) * self.scale / 3 if text else None for text in texts],
            "length_codes": [[ord(letter) for letter in text] if text else None for text in texts],
            "length_error": ["" if text else "empty: no text" for text in texts],
        }


def texts(rows: int, bad: int = 7) -> Dataset:
    """Rows of growing and shrinking texts; every `bad`-th is empty."""
    return Dataset.from_dict(
        {"text": ["ab" * (1 + i % LONGEST) if i % bad else "" for i in range(1, rows + 1)], "id": list(range(rows))}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results_of(folder: Path) -> dict[str, bytes]:
    """What a run has computed: all of its files but the log, which tells how, and the recipe, which names the
    folder."""
    found = files_of(folder)
    return {name: content for name, content in found.items() if Path(name).name not in ("log.txt", "recipe.yaml")}
