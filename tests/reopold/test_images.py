"""Images of prompts: whatever is wrong with one is said before any work starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from reopold.config import ConfigError
from reopold.data.images import chat_parts, find_image, load_image
from reopold.data.prompts import load_prompts


def picture(file: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(file)
    return file


def missing(file: Path) -> None:
    pass


def cut_off(file: Path) -> None:
    file.write_bytes(picture(file).read_bytes()[:2000])


def no_picture(file: Path) -> None:
    file.write_text("a text")


def folder(file: Path) -> None:
    file.mkdir()


def animated(file: Path) -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (missing, "cannot be read"),
        (cut_off, "cannot be read"),
        (no_picture, "cannot be read"),
        (folder, "cannot be read"),
        (animated, r"animated \(2 frames\)"),
    ],
)
def test_faulty_images_are_refused_with_their_line(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "it.png")
    line = {
        "id": 1,
        "prompt": [{"role": "user", "content": "<image>1+1="}],
        "answer": "2",
        "images": ["it.png"],
    }
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=f"p.jsonl line 1: image .*it.png.*{reason}"):
        load_prompts(str(file))


def test_a_huge_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = picture(tmp_path / "it.png")
    monkeypatch.setattr("reopold.data.images.MAX_PIXELS", 60 * 40 - 1)
    with pytest.raises(ConfigError, match="60 x 40 pixels"):
        load_image(str(file))
    monkeypatch.setattr("reopold.data.images.MAX_PIXELS", 60 * 40)
    assert load_image(str(file)).size == (60, 40)


def test_an_image_is_known_by_its_bytes(tmp_path: Path) -> None:
    file = picture(tmp_path / "it.png")
    assert find_image(str(file)).digest == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "images"), [("<image>", 0), ("none", 1), ("<image> <image>", 1), ("<image>", 2)]
)
def test_placeholders_and_images_are_counted(text: str, images: int) -> None:
    with pytest.raises(ConfigError, match="image placeholders"):
        chat_parts([{"role": "user", "content": text}], images)


def test_parts_stand_where_their_placeholders_stood() -> None:
    chat = [{"role": "user", "content": "a<image>b<image>"}, {"role": "system", "content": "c"}]
    assert chat_parts(chat, 2)[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image"},
        {"type": "text", "text": "b"},
        {"type": "image"},
    ]
    assert chat_parts(chat[1:], 0) == chat[1:]
