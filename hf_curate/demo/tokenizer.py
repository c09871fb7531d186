"""The demo models' tokenizers: one token a character, so that token and character positions agree."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<eos>", "<unk>")
PAD_ID, EOS_ID, UNK_ID = range(len(SPECIALS))
CHARACTERS = "\n#*+-=?0123456789"


def build_tokenizer(max_length: int, characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """A fast tokenizer of ``len(SPECIALS) + len(characters)`` tokens.

    It adds no special token by itself and has no chat template; a character outside ``characters`` becomes ``<unk>``.
    ``max_length`` is the model's limit in tokens.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
