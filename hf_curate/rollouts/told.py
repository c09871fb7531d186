"""Token ids as a server tells them: whether they are of this tokenizer, of the text beside them and after this prompt.

Gradients are taken at these tokens. Ids of another tokenizer would pass for sampled ones, and no number would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_curate.errors import RowError
from hf_curate.rollouts.completions import Sampled
from hf_curate.rollouts.verify import shown

HALF = "\N{REPLACEMENT CHARACTER}"
SAME = "does the server use the same tokenizer?"


def check_told(sampled: Sequence[Sampled], prompt: Sequence[int], tokenizer: Any) -> None:
    """Raises RowError unless the ids of one prompt's responses can be taken for what was sampled after it.

    sampled: with `token_ids`; prompt: its tokens here, compared with the server's where it tells them.
    RowError: "unknown token id"; "token ids and text differ": the ids do not decode to the text, but for white space
    at its ends and for halves of characters, which servers hold back; "prompts differ".
    """
    highest = max(tokenizer.get_vocab().values())
    for number, one in enumerate(sampled, 1):
        ids = one.token_ids or []
        if strange := [token for token in ids if not 0 <= token <= highest]:
            detail = f"response {number} holds id {strange[0]:,}, the tokenizer knows 0 to {highest:,}: {SAME}"
            raise RowError("unknown token id", detail)
        texts = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)]
        if _plain(one.text) not in map(_plain, texts):
            said, read = (shown(repr(text), 40) for text in (one.text, texts[0]))
            raise RowError("token ids and text differ", f"response {number} is {said}, its ids say {read}: {SAME}")
        if one.prompt_ids is not None and one.prompt_ids != list(prompt):
            detail = f"the server read {len(one.prompt_ids):,} tokens, here there are {len(prompt):,}"
            raise RowError("prompts differ", f"{detail}: does it use the same tokenizer and chat template?")


def _plain(text: str) -> str:
    return text.replace(HALF, "").strip()
