"""What a scorer writes down about itself, and what it leaves alone."""

from __future__ import annotations

import io
import json
import pickle
import warnings

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from hf_curate import GraceScorer, score, select
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError
from hf_curate.scorers.audit import AUDIT_STREAM
from hf_curate.scorers.warm_up import WARM_UP_STREAM


def test_secrets_and_paths_in_model_kwargs_reach_no_record_and_no_pickle() -> None:
    kwargs = {"token": "hf_SECRET", "cache_dir": "/home/SECRET/cache", "attn_implementation": "eager"}
    scorer = GraceScorer(MODEL, dtype="float32", model_kwargs=kwargs)
    assert "SECRET" not in json.dumps(scorer.record())
    assert b"SECRET" not in pickle.dumps(scorer)
    assert scorer.record()["settings"]["model_kwargs"] == {"attn_implementation": "eager"}
    assert scorer.identity != GraceScorer(MODEL, dtype="float32").identity


def test_a_model_argument_that_cannot_be_written_down_is_an_error() -> None:
    with pytest.raises(CurateError, match="written into the record"):
        GraceScorer(MODEL, model_kwargs={"attn_implementation": object()})


def test_the_call_repeats_the_scorer() -> None:
    scorer = GraceScorer(MODEL, dtype="float32", alpha=0.5, history=("window", 2), prompt="prompt", batch_tokens=100)
    call = scorer.record()["call"]
    assert (
        call == "GraceScorer('./arithmetic-0.8m', prompt='prompt', alpha=0.5, history=('window', 2), dtype='float32')"
    )
    again = eval(call, {"GraceScorer": lambda model, **options: GraceScorer(MODEL, **options)})
    assert again.identity == scorer.identity


def test_columns_that_scoring_does_not_read_keep_their_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pictures.fromarray(noise).save(buffer, format="JPEG", quality=30)
    picture = buffer.getvalue()
    rows = load_traces().select(range(12)).to_list()
    features = Features({name: Value("string") for name in ("prompt", "completion")} | {"image": Image()})
    dataset = Dataset.from_list(
        [
            {"prompt": r["prompt"], "completion": r["completion"], "image": {"bytes": buffer.getvalue()}}
            for r in rows[:-1]
        ]
        + [{"prompt": "1+1?\n", "completion": "1+1=2\n#2", "image": {"bytes": b"no picture", "path": None}}],
        features=features,
    )
    scorer = GraceScorer(MODEL, dtype="float32")
    for scored in (score(dataset, scorer), dataset.map(scorer), dataset.map(scorer, batched=True, batch_size=5)):
        stored = [cell["bytes"] for cell in scored.with_format("arrow")[:]["image"].to_pylist()]
        assert stored == [picture] * 11 + [b"no picture"]
        assert set(scored["grace_error"]) == {""}


def test_the_record_does_not_depend_on_what_the_scorer_did_before() -> None:
    traces = load_traces().select(range(20))
    first = GraceScorer(MODEL, dtype="float32")
    scored = score(traces, first)
    fresh = GraceScorer(MODEL, dtype="float32")
    manifests = [select(scored, scorer, budget="20%").manifest for scorer in (first, fresh, fresh)]
    assert manifests[0] == manifests[1] == manifests[2]
    assert manifests[0]["selector"]["settings"]["columns"]["prompt"] == "prompt"


def test_one_seed_draws_different_rows_for_warm_up_and_audit() -> None:
    drawn = [
        set(np.random.default_rng(stream).permutation(1000)[:50].tolist())
        for stream in ([0, WARM_UP_STREAM], [0, AUDIT_STREAM], 0)
    ]
    assert len(drawn[0] & drawn[1]) < 15
    assert len(drawn[0] & drawn[2]) < 15


def test_text_that_the_tokenizer_does_not_know_is_a_warning_once() -> None:
    rows = Dataset.from_dict({"prompt": ["How many?\n"] * 2, "completion": ["Two and two are four\n#4"] * 2})
    scorer = GraceScorer(MODEL, dtype="float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scorer(rows[:])
        scorer(rows[:])
    unknown = [str(warning.message) for warning in caught if "unknown" in str(warning.message)]
    assert len(unknown) == 1
    assert "tokenizer of arithmetic-0.8m" in unknown[0]
