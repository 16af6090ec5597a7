"""Tokenizers and chat rendering. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reopold.config import ConfigError
from reopold.data.images import chat_parts


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a checkpoint folder or hub id.

    Raises:
        ConfigError: there is none, or it has no chat template or no EOS.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer at {path}: {str(error).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has no EOS token: no rollout could ever stop")
    if template := _processor_template(path):
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {path} has no chat template")
    return tokenizer


def _processor_template(path: str) -> str | None:
    """The chat template that older vision-language checkpoints keep beside the tokenizer's files.

    It may be the only one, or the one of both that shows images. A `chat_template.jinja` is newer,
    and the tokenizer has read it.

    Raises:
        ConfigError: its file is damaged.
    """
    from transformers.utils.hub import cached_file

    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    file = cached_file(path, "chat_template.json", **quiet)
    if file is None or cached_file(path, "chat_template.jinja", **quiet) is not None:
        return None
    try:
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the chat template in {file} is damaged: {error}") from error


def check_same_tokenizer(student: str, teacher: str) -> None:
    """Refuse a teacher that would read the student's token ids as other tokens.

    Raises:
        ConfigError: an id stands for different tokens, or EOS differs.
    """
    ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    mine, other = ours.get_vocab(), theirs.get_vocab()
    differing = sorted(
        token for token in mine.keys() | other.keys() if mine.get(token) != other.get(token)
    )
    if differing:
        token = differing[0]
        raise ConfigError(
            f"student {student} and teacher {teacher} have different tokenizers: "
            f"{len(differing)} tokens differ, for example {token!r} is id {mine.get(token)} and "
            f"{other.get(token)}. "
            "On-policy distillation scores token ids: choose a teacher of the student's family"
        )
    if ours.eos_token_id != theirs.eos_token_id:
        raise ConfigError(
            f"student {student} ends with id {ours.eos_token_id}, teacher {teacher} with id "
            f"{theirs.eos_token_id}: the teacher would never reward stopping"
        )


def render(
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    *,
    images: int = 0,
    tools: Sequence[dict[str, Any]] = (),
) -> list[int]:
    """Token ids of a chat up to where the assistant's answer begins.

    Args:
        images: of the chat, whose text has a placeholder for each; each becomes what the chat
            template writes for one, not yet expanded (:meth:`reopold.vision.Vision.expand`).
        tools: schemas of the functions that may be called, for the template to show.

    Raises:
        ConfigError: the tokenizer does not know a part of it, or placeholders and images differ.
    """
    encoded = tokenizer.apply_chat_template(
        chat_parts(messages, images), tools=list(tools) or None, add_generation_prompt=True
    )
    ids: list[int] = encoded["input_ids"]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        text = " ".join(message["content"] for message in messages)
        raise ConfigError(f"the tokenizer does not know some of the prompt {text[:200]!r}")
    return ids
