"""A character-level tokenizer of the Hugging Face kind, with a chat template."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: pad and EOS differ on purpose: where they are one id, masks by id hide the real EOS.
SPECIAL = ("<pad>", "<eos>", "<|user|>", "<|assistant|>")
CHARACTERS = "0123456789+-*=;#"
#: Never in a prompt (`render` refuses it); vLLM's server tokenises English text when it starts.
UNKNOWN = "<unk>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that the micro teacher and student share (21 ids)."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS, UNKNOWN))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token=UNKNOWN,
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
