"""What we rely on in `transformers` and `tokenizers`. A failure here names the assumption that a new version broke."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHAT, byte_level, saved, tiny, unigram
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer

KINDS = ["Qwen3", "Llama", "Gemma2", "GPT2", "Mistral"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_ends_after_the_final_norm_where_the_head_starts(kind: str) -> None:
    model = tiny(kind, 40)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden)
        cap = getattr(model.config, "final_logit_softcapping", None)
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        torch.testing.assert_close(logits, model(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_right_padding_without_a_mask_is_exact_for_causal_models(kind: str) -> None:
    model = tiny(kind, 40)
    row = torch.tensor([[3, 1, 4, 1, 5]])
    padded = torch.cat([torch.cat([row, torch.tensor([[9, 9, 9]])], dim=1), torch.full((1, 8), 7)])
    with torch.no_grad():
        alone = model.get_decoder()(input_ids=row, use_cache=False).last_hidden_state
        among = model.get_decoder()(input_ids=padded, use_cache=False).last_hidden_state
    torch.testing.assert_close(among[:1, :5], alone, atol=1e-5, rtol=1e-5)


def test_tied_and_untied_heads_are_linear_layers() -> None:
    for tied in (True, False):
        model = tiny(vocabulary=40, tie_word_embeddings=tied)
        head = model.get_output_embeddings()
        assert isinstance(head, torch.nn.Linear)
        assert (head.weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_offsets_are_characters_of_the_text_as_it_was_given(make: Any) -> None:
    tokenizer = make(bos=True)
    text = "so 2 + 2\r\nis four 🎉, naïve"
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=True, verbose=False)
    offsets = encoding["offset_mapping"]
    assert len(offsets) == len(encoding["input_ids"])
    assert tuple(offsets[0]) == (0, 0), "a special token covers nothing"
    covered = {c for low, high in offsets for c in range(low, high)}
    assert {c for c in range(len(text)) if not text[c].isspace()} <= covered
    assert [low for low, _ in offsets] == sorted(low for low, _ in offsets)


def test_a_character_of_several_tokens_is_covered_by_each() -> None:
    tokenizer = byte_level(["plain text alone"], size=270)
    offsets = tokenizer("x🎉y", return_offsets_mapping=True)["offset_mapping"]
    assert [tuple(pair) for pair in offsets] == [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]


def test_special_tokens_in_plain_text_are_read_as_such() -> None:
    tokenizer = byte_level(bos=True)
    assert tokenizer("<s>a", add_special_tokens=False)["input_ids"][0] == tokenizer.bos_token_id


def test_the_chat_template_renders_text_with_the_generation_prompt() -> None:
    tokenizer = byte_level(chat_template=CHAT)
    chat = [{"role": "user", "content": "x"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "<|user|>x\n<|assistant|>"
    )
    assert byte_level().chat_template is None


def test_a_folder_gives_back_model_config_and_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_level(chat_template=CHAT)
    folder = saved(tmp_path / "model", tiny().to(torch.bfloat16), tokenizer)
    config = AutoConfig.from_pretrained(folder, revision=None, trust_remote_code=False)
    assert config.dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=False, revision=None
    )
    assert model.dtype == torch.bfloat16
    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert again.is_fast
    assert again.chat_template == CHAT
    assert again("so 2 + 2")["input_ids"] == tokenizer("so 2 + 2")["input_ids"]


def test_remote_code_is_refused_where_it_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attention_of_another_name_is_given_no_mask_and_every_head(kind: str) -> None:
    seen: list[dict[str, Any]] = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        seen.append({"mask": attention_mask, "config": module.config, "shapes": (query.shape, key.shape, value.shape)})
        return query.transpose(1, 2), None  # [B, T, H, D]

    AttentionInterface.register("hf_curate_test", attend)
    decoder = tiny(kind, 40).get_decoder()
    usual, decoder.config._attn_implementation = decoder.config._attn_implementation, "hf_curate_test"
    with torch.no_grad():
        decoder(
            input_ids=torch.tensor([[3, 1, 4, 1, 5]]), position_ids=torch.tensor([[0, 1, 2, 1, 2]]), use_cache=False
        )
    assert usual in ("sdpa", "eager")
    assert len(seen) == decoder.config.num_hidden_layers
    for one in seen:
        assert one["mask"] is None
        assert one["config"] is decoder.config
        query, key, value = one["shapes"]
        assert query[0] == key[0] == 1
        assert query[2] == key[2] == value[2] == 5
