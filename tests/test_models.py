"""Models: what is loaded, what is refused by name, and what counts as the same weights. Nothing is ever executed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from tiny import TEXTS, byte_level, saved, tiny
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_curate import GraceScorer
from hf_curate.errors import ModelError
from hf_curate.models import as_dtype, evaluating, load_model, load_tokenizer, pick_device
from hf_curate.weights import (
    ModelSource,
    context_length,
    folder_digest,
    load_config,
    tokenizer_digest,
    weights_digest,
)

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROW = {"prompt": "How many?\n", "completion": "48/2=24\n\n48+24=72\n\n#### 72"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    return saved(tmp_path / "model", tiny(), tokenizer)


def value(model: Any, **settings: Any) -> float:
    found = GraceScorer(model, **settings)(ROW)
    assert found["grace_error"] == ""
    return float(found["grace_value"])


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_pickled_weights_alone_is_refused_and_safetensors_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ModelError, match=r"no safetensors weights, only pytorch_model.bin.*can run code.*save_pretr"):
        GraceScorer(folder)


@pytest.mark.parametrize("model_type", ["unheard_of", "qwen3"])
def test_remote_code_in_a_folder_is_never_executed(model_type: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Tok: pass\n"
    (folder / "evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": "evil.Tok"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rules = json.loads((folder / "tokenizer_config.json").read_text())
    rules["auto_map"] = {"AutoTokenizer": ["evil.Tok", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(rules))
    if model_type == "qwen3":  # a known type is loaded by the library's own class
        value(folder)
    else:
        with pytest.raises(ModelError, match="'model' cannot be read as a model"):
            GraceScorer(folder)(ROW)
    assert not marker.exists()


def test_a_folder_without_a_config_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"the folder 'empty' holds no config.json"):
        GraceScorer(tmp_path / "empty")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": 3}'])
def test_a_broken_config_is_an_error_of_ours(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="'model' cannot be read as a model"):
        load_config(ModelSource.of(folder))


def test_broken_weights_are_an_error_of_ours(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="'model' cannot be loaded as a causal LM"):
        GraceScorer(folder)(ROW)


def test_a_folder_without_a_tokenizer_is_an_error_of_ours(tmp_path: Path) -> None:
    for kind, says in (("Llama", "no tokenizer could be loaded from"), ("Qwen3", "holds no tokenizer")):
        tiny(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(ModelError, match=says):
            GraceScorer(tmp_path / kind)(ROW)


def test_a_revision_with_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="revision='main' was given with the folder 'model': folders have none"):
        GraceScorer(folder, revision="main")


def test_a_string_and_a_path_name_the_same_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.chdir(folder.parent)
    identities = {GraceScorer(model).identity for model in (folder, str(folder), "model", "./model", f"{folder}/")}
    assert len(identities) == 1


# -- Hub ids ----------------------------------------------------------------------------------------------------------


def test_an_unknown_id_offline_is_an_error_that_names_it() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing@main cannot be resolved .*not in the local cache"):
        GraceScorer("nobody/nothing").identity  # noqa: B018
    with pytest.raises(ModelError, match="nobody/nothing"):
        GraceScorer("nobody/nothing@v2")(ROW)
    with pytest.raises(ModelError, match="nobody/nothing"):
        GraceScorer("nobody/nothing", revision="a" * 40)(ROW)


@pytest.mark.parametrize("name", ["a/b/c", "/no/such/folder", "../model", "", "org/na me", "-x/y"])
def test_text_that_is_neither_folder_nor_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder that exists nor a Hub id"):
        GraceScorer(name)


def test_two_revisions_are_refused() -> None:
    with pytest.raises(ModelError, match="two revisions of org/name: 'v1' in the id and revision='v2'"):
        GraceScorer("org/name@v1", revision="v2")


def test_something_that_is_no_model_is_refused_by_its_type() -> None:
    with pytest.raises(ModelError, match="model is a int"):
        GraceScorer(3)
    with pytest.raises(ModelError, match="model is a Linear"):
        GraceScorer(nn.Linear(2, 2))


# -- what cannot be scored --------------------------------------------------------------------------------------------


def test_an_encoder_decoder_is_refused_by_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=400, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        GraceScorer(model, tokenizer=tokenizer)(ROW)
    with pytest.raises(ModelError, match=r"'model'.*"):
        GraceScorer(saved(tmp_path / "model", model, tokenizer))(ROW)


class _Twice(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 2


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(32, 400)), "The LM head of Qwen3ForCausalLM is a torch.nn.*Sequential"),
        (lambda: nn.Bilinear(32, 32, 400), "The LM head of Qwen3ForCausalLM is a torch.nn.*Bilinear"),
        (lambda: _Twice(32, 400, bias=False), "Qwen3ForCausalLM computes its logits in a way this library does not"),
    ],
)
def test_an_odd_lm_head_is_refused_by_name(head: Any, says: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(tie_word_embeddings=False)
    model.lm_head = head()
    with pytest.raises(ModelError, match=says):
        GraceScorer(model, tokenizer=tokenizer)(ROW)


def test_a_head_of_integers_is_refused_with_what_to_pass(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="leave the head out of quantisation"):
        GraceScorer(model, tokenizer=tokenizer)(ROW)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match="the tokenizer has 400 tokens, the model 399 embeddings: they do not match"):
        GraceScorer(tiny(vocabulary=399), tokenizer=tokenizer)(ROW)


def test_a_model_with_spare_embeddings_is_fine(tokenizer: PreTrainedTokenizerFast) -> None:
    value(tiny(vocabulary=448), tokenizer=tokenizer)


class _Slow:
    is_fast = False
    chat_template = None


def test_a_tokenizer_without_offsets_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"_Slow gives no character offsets.*PreTrainedTokenizerFast"):
        GraceScorer(folder, tokenizer=_Slow())(ROW)


def test_a_slow_tokenizer_of_transformers_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers.models.canine.tokenization_canine import CanineTokenizer

    with pytest.raises(ModelError, match="CanineTokenizer gives no character offsets"):
        GraceScorer(folder, tokenizer=CanineTokenizer())(ROW)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("trust_remote_code", True),
        ("use_safetensors", False),
        ("revision", "main"),
        ("dtype", "float16"),
        ("torch_dtype", torch.float16),
        ("state_dict", {}),
        ("subfolder", "other"),
    ],
)
def test_model_kwargs_cannot_undo_the_safety_or_load_other_weights(name: str, given: Any, folder: Path) -> None:
    source = ModelSource.of(folder)
    with pytest.raises(ModelError, match=f"model_kwargs may not set {name}: .* use dtype= or revision="):
        load_model(source, load_tokenizer(source), model_kwargs={name: given})


def test_a_live_model_is_taken_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    for settings in ({"dtype": "bfloat16"}, {"model_kwargs": {"attn_implementation": "eager"}}):
        with pytest.raises(ModelError, match="a live model is taken as it is"):
            GraceScorer(tiny(), tokenizer=tokenizer, **settings)(ROW)


# -- devices and dtypes -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_where_there_is_none_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"device='cuda', but torch .* sees no CUDA device"):
        GraceScorer(folder, device="cuda")(ROW)


def test_ranks_are_spread_over_the_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(pick_device(None, rank)) for rank in (None, 0, 1, 2)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:0"]
    assert str(pick_device("cpu", 1)) == "cpu"


def test_cuda_in_a_forked_worker_is_an_error_that_names_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("hf_curate.models._forked", True)
    with pytest.raises(ModelError, match=r"multiprocess.set_start_method\('spawn'\)"):
        pick_device(None, 0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, "auto"),
        ("float32", torch.float32),
        ("torch.bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_a_dtype_is_read_from_its_name(asked: Any, expected: Any) -> None:
    assert as_dtype(asked) == expected


@pytest.mark.parametrize("asked", ["int8", torch.int32, torch.bool, "float", "nn", "bf16", 16, "auto", "complex64"])
def test_other_dtypes_are_refused_or_read_as_torch_does(asked: Any) -> None:
    if asked == "float":
        assert as_dtype(asked) == torch.float32
        return
    with pytest.raises(ModelError, match="is not a floating point dtype: 'float32', 'bfloat16' or 'float16'"):
        as_dtype(asked)


@pytest.mark.parametrize("proxy", ["representation", "outer", "last", "exact"])
@pytest.mark.parametrize(("dtype", "room"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_half_precision_runs_and_is_close(dtype: str, room: float, proxy: str, folder: Path) -> None:
    full, half = (GraceScorer(folder, dtype=kind, proxy=proxy) for kind in ("float32", dtype))
    one, other = full(ROW), half(ROW)
    assert one["grace_error"] == other["grace_error"] == ""
    assert half.load().model.dtype == getattr(torch, dtype)
    np.testing.assert_allclose(other["grace_step_scores"], one["grace_step_scores"], atol=room)
    np.testing.assert_allclose(other["grace_loss"], one["grace_loss"], rtol=room)
    assert half.identity != full.identity
    assert half.record()["model"]["dtype"] == dtype


def test_the_checkpoints_own_dtype_is_the_default(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    made = GraceScorer(saved(tmp_path / "half", tiny().to(torch.bfloat16), tokenizer))
    assert made.load().model.dtype == torch.bfloat16
    assert made.record()["model"]["dtype"] == "bfloat16"


def test_model_kwargs_pass_through_and_enter_the_identity(folder: Path) -> None:
    eager = GraceScorer(folder, model_kwargs={"attn_implementation": "eager"})
    plain = GraceScorer(folder)
    assert eager.load().model.config._attn_implementation == "eager"
    assert eager.identity != plain.identity
    assert eager(ROW)["grace_value"] == pytest.approx(plain(ROW)["grace_value"], abs=1e-5)


def test_a_device_map_is_a_place_and_no_other_model(folder: Path) -> None:
    pytest.importorskip("accelerate")
    mapped = GraceScorer(folder, model_kwargs={"device_map": {"": "cpu"}})
    assert mapped.identity == GraceScorer(folder).identity
    assert mapped(ROW)["grace_value"] == pytest.approx(value(folder), abs=1e-6)


def test_the_models_context_is_the_longest_row(folder: Path) -> None:
    assert context_length(load_config(ModelSource.of(folder))) == 1024
    assert GraceScorer(folder).settings()["max_length"] == 1024
    assert GraceScorer(folder, max_length=16)(ROW)["grace_error"].startswith("too long")


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(5)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    return saved(tmp_path / "adapter", model, tokenizer)


@pytest.mark.parametrize("proxy", ["representation", "outer", "exact"])
def test_an_adapter_folder_loads_onto_its_base(proxy: str, adapter: Path, folder: Path) -> None:
    with_adapter = value(adapter, proxy=proxy)
    assert with_adapter != pytest.approx(value(folder, proxy=proxy), abs=1e-4)
    from peft import PeftModel

    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).merge_and_unload()
    live = value(merged, proxy="representation", tokenizer=GraceScorer(folder).reader.tokenizer)
    assert value(adapter) == pytest.approx(live, abs=1e-4)
    assert GraceScorer(adapter).identity != GraceScorer(folder).identity
    assert GraceScorer(adapter).record()["model"]["architecture"] == "Qwen3ForCausalLM"


def test_an_adapter_folder_without_a_tokenizer_takes_that_of_its_base(adapter: Path) -> None:
    expected = value(adapter)
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    assert value(adapter) == expected


def test_the_last_blocks_proxy_refuses_adapted_layers_by_name(adapter: Path) -> None:
    with pytest.raises(ModelError, match=r"proxy='last' needs .* as linear layers.*lora_A"):
        value(adapter, proxy="last")


def test_broken_adapter_weights_are_an_error_of_ours(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="the adapter 'adapter' cannot be loaded onto 'model'"):
        value(adapter)


def test_pickled_adapter_weights_are_refused_also_beside_other_safetensors(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "other.safetensors")
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no safetensors weights, only adapter_model.bin"):
        GraceScorer(adapter)


def test_other_adapter_weights_are_another_identity(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = GraceScorer(adapter).identity
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")
    assert GraceScorer(adapter).identity != before


def test_other_weights_of_the_base_are_another_identity_of_the_adapter(adapter: Path, folder: Path) -> None:
    before = GraceScorer(adapter).identity
    assert GraceScorer(adapter).identity == before
    tiny(seed=9).save_pretrained(folder)
    assert GraceScorer(adapter).identity != before


def test_live_models_with_adapters_are_scored_with_them(
    adapter: Path, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    injected = AutoModelForCausalLM.from_pretrained(folder)
    injected.load_adapter(str(adapter))
    expected = value(adapter)
    assert value(wrapped, tokenizer=tokenizer) == pytest.approx(expected, abs=1e-6)
    assert value(injected, tokenizer=tokenizer) == pytest.approx(expected, abs=1e-6)


def test_an_adapter_whose_base_is_gone_is_an_error_of_ours(adapter: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="neither a folder that exists nor a Hub id"):
        GraceScorer(adapter)(ROW)


# -- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_folder_follows_its_weights_and_config_only(folder: Path) -> None:
    before = folder_digest(folder)
    (folder / "README.md").write_text("notes")
    assert folder_digest(folder) == before
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert folder_digest(folder) != before
    (folder / "config.json").write_text(config)
    assert folder_digest(folder) == before
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert folder_digest(folder) != before


def test_a_copy_of_a_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_digest(folder) == folder_digest(tmp_path / "copy")


def test_a_live_digest_follows_every_weight_and_is_the_same_for_equal_models() -> None:
    one, two = tiny(), tiny()
    assert weights_digest(one) == weights_digest(two)
    assert weights_digest(one) != weights_digest(tiny(seed=1))
    with torch.no_grad():
        two.model.norm.weight[3] += 1e-6
    assert weights_digest(one) != weights_digest(two)
    assert weights_digest(one) != weights_digest(tiny().to(torch.bfloat16))


def adapted(**settings: Any) -> Any:
    """A live model with two adapters of equal weights."""
    peft = pytest.importorskip("peft")
    settings = {"r": 2, "target_modules": ["v_proj", "q_proj"], "init_lora_weights": False, **settings}
    torch.manual_seed(5)
    model = peft.get_peft_model(tiny(), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    model.add_adapter("other", peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    return model


def test_a_live_digest_follows_what_its_adapters_do() -> None:
    plain, model = weights_digest(adapted()), adapted()
    model.peft_config["default"].base_model_name_or_path = "/elsewhere"
    assert weights_digest(model) == plain
    others = {
        "alpha": weights_digest(adapted(lora_alpha=64)),
        "rslora": weights_digest(adapted(use_rslora=True)),
        "base alone": weights_digest(tiny()),
    }
    model.set_adapter("other")
    others["active"] = weights_digest(model)
    model.set_adapter("default")
    model.base_model.disable_adapter_layers()
    others["disabled"] = weights_digest(model)
    model.base_model.enable_adapter_layers()
    assert weights_digest(model) == plain
    layer = next(m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict))
    layer.scale_layer(2.0)
    others["scaled"] = weights_digest(model)
    assert len({plain, *others.values()}) == len(others) + 1


def test_a_live_digest_follows_adapters_that_transformers_injected() -> None:
    peft = pytest.importorskip("peft")
    model = tiny()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = weights_digest(model)
    model.disable_adapters()
    assert weights_digest(model) != before
    model.enable_adapters()
    assert weights_digest(model) == before


def test_a_live_digest_with_adapters_is_the_same_in_every_process(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    code = "import test_models as m; print(m.weights_digest(m.adapted(target_modules=set(m.NAMES))))"
    found = set()
    for seed in ({}, {"PYTHONHASHSEED": "2"}):
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | seed
        done = warm.run([sys.executable, "-c", code], check=True, env=env)
        found.add(done.stdout.splitlines()[-1])
    assert len(found) == 1


def test_the_digest_of_a_tokenizer_ignores_the_state_of_its_last_call() -> None:
    one = byte_level()
    before = tokenizer_digest(one)
    one(TEXTS, truncation=True, max_length=4, padding="max_length", pad_to_multiple_of=8) if one.pad_token else one(
        TEXTS, truncation=True, max_length=4
    )
    assert tokenizer_digest(one) == before
    one.chat_template = "{{ messages }}"
    assert tokenizer_digest(one) != before
    assert tokenizer_digest(byte_level(bos=True)) != before
    ended = byte_level()
    ended.eos_token = "a"
    assert tokenizer_digest(ended) != before


# -- loading ----------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_in_eval_mode_without_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ModelSource.of(folder)
    with caplog.at_level(logging.WARNING):
        loaded = load_model(source, load_tokenizer(source))
    assert not loaded.model.training
    assert loaded.is_current()
    assert caplog.records == []


def test_evaluating_restores_the_mode_of_every_module_also_after_an_error() -> None:
    model = tiny("GPT2").train()
    model.transformer.drop.eval()

    def inside() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        inside()
    assert model.training
    assert not model.transformer.drop.training
