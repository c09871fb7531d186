"""Where the real data for tests is: GSM8K as its authors publish it, `train.jsonl` and `test.jsonl` in one folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"


def gsm8k_folder() -> Path | None:
    """The folder that HF_CURATE_GSM8K names, else shared/data/gsm8k beside the repository; None if absent."""
    named = os.environ.get("HF_CURATE_GSM8K")
    folder = Path(named) if named else _BESIDE
    return folder if (folder / "train.jsonl").is_file() else None


def gsm8k_rows(split: str = "train") -> list[dict[str, str]]:
    """The rows {"question", "answer"} of one split, in their order."""
    folder = gsm8k_folder()
    if folder is None:
        pytest.skip("GSM8K not found: set HF_CURATE_GSM8K to a folder with train.jsonl and test.jsonl")
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


needs_gsm8k = pytest.mark.skipif(
    gsm8k_folder() is None, reason="GSM8K not found: set HF_CURATE_GSM8K to a folder with train.jsonl and test.jsonl"
)
