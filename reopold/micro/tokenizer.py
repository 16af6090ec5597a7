"""A tokenizer of the Hugging Face kind for the suite's texts, with a chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: pad and EOS differ on purpose: where they are one id, masks by id hide the real EOS.
SPECIAL = ("<pad>", "<eos>", "<|user|>", "<|assistant|>")
CHARACTERS = "0123456789+-*=;#"
#: Never in a prompt (`render` refuses it); vLLM's server tokenises English text when it starts.
UNKNOWN = "<unk>"

#: A message is a text, or parts of which an image is one `<image>`.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(
    *, characters: str = "", fragments: Sequence[str] = (), special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """The tokenizer that the micro teacher and student share: a token a character (21 ids for the
    maths suite alone).

    Args:
        characters: beyond those of the maths suite.
        fragments: texts that are one token each.
        special: further tokens that stand for no text.
    """
    marks = (*SPECIAL, *special)
    words = dict.fromkeys((*CHARACTERS, *characters, *fragments))
    vocabulary = {token: index for index, token in enumerate((*marks, *words, UNKNOWN))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    longest_first = sorted(fragments, key=lambda text: -len(text))
    cut = Regex("|".join([*map(re.escape, longest_first), "."]))
    backend.pre_tokenizer = pre_tokenizers.Split(cut, behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token=UNKNOWN,
        padding_side="left",
    )
    extra = ["<|user|>", "<|assistant|>", *special]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
