"""Tiny vision-language checkpoints that read any text, with room for long questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.reopold import tiny_vision
from tests.reopold.tiny_vision import SPECIAL, TEMPLATE, tiny_llava, tiny_qwen25_vl

POSITIONS = 4096


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and the special tokens of the tiny models."""
    names = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex("."), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[2:])})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def byte_llava(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        _prepare(patch)
        return tiny_llava(folder)


def byte_qwen25_vl(folder: Path) -> Path:
    """As Qwen2.5-VL's own template, this one's marks where an image begins and ends."""
    with pytest.MonkeyPatch.context() as patch:
        _prepare(patch)
        tiny_qwen25_vl(folder)
    marked = TEMPLATE.replace("<image>", "<vision_start><image><vision_end>")
    (folder / "chat_template.jinja").write_text(marked, encoding="utf-8")
    return folder


def _prepare(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tiny_vision, "tiny_tokenizer", byte_tokenizer)
    patch.setitem(tiny_vision.TEXT, "max_position_embeddings", POSITIONS)
