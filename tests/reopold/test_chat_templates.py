"""Where a checkpoint's chat template may lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reopold.config import ConfigError
from reopold.data.tokenizers import load_tokenizer
from tests.reopold.tiny_vision import tiny_tokenizer


@pytest.mark.parametrize(
    ("tokenizers", "older", "newer", "wanted"),
    [
        ("own", None, None, "own"),
        ("own", "older", None, "older"),  # the tokenizer's own shows no images
        (None, "older", None, "older"),
        ("own", "older", "newer", "newer"),
    ],
)
def test_the_template_that_shows_images_is_found(
    tmp_path: Path, tokenizers: str | None, older: str | None, newer: str | None, wanted: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizers
    tokenizer.save_pretrained(tmp_path)
    inside = tmp_path / "tokenizer_config.json"
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    if tokenizers:
        config = json.loads(inside.read_text())
        inside.write_text(json.dumps(config | {"chat_template": tokenizers}))
    if older:
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": older}))
    if newer:
        (tmp_path / "chat_template.jinja").write_text(newer)
    assert load_tokenizer(str(tmp_path)).chat_template == wanted


def test_a_damaged_template_is_named(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "chat_template.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"chat_template\.json is damaged"):
            load_tokenizer(str(tmp_path))
