"""Images of prompts: named by what is in them, read when they are needed.

A chat has :data:`PLACEHOLDER` in its text where an image belongs, and a list of image files beside
it. An image is known by the hash of its file, so that no cache depends on where a file lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reopold.config import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from reopold.vision import Vision

#: Stands in a message where an image belongs.
PLACEHOLDER = "<image>"
#: Pixels of one image; more is refused before it is decoded (a decompression bomb).
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Image:
    """A file with a picture."""

    path: str
    digest: str
    """SHA-256 of the file, hexadecimal."""


def find_image(path: str) -> Image:
    """The image in a file, which is read once to its end, and again only where it has changed.

    Raises:
        ConfigError: the file is missing, is no picture, is broken, too large or animated.
    """
    try:
        there = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error
    return _found(path, there.st_size, there.st_mtime_ns)


@cache
def _found(path: str, size: int, modified: int) -> Image:
    load_image(path)
    return Image(path, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def load_image(path: str) -> Picture:
    """The picture in RGB.

    Raises:
        ConfigError: as :func:`find_image`.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        picture = Pillow.open(path)
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            raise ConfigError(f"image {path} is animated ({frames} frames): keep one frame")
        if picture.width * picture.height > MAX_PIXELS:
            raise ConfigError(
                f"image {path} has {picture.width} x {picture.height} pixels, more than "
                f"{MAX_PIXELS:,}: scale it down"
            )
        return picture.convert("RGB")
    except (
        OSError,
        UnidentifiedImageError,
        ValueError,
        SyntaxError,
        Pillow.DecompressionBombError,
    ) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error


def chat_parts(messages: Sequence[dict[str, str]], images: int) -> list[dict[str, Any]]:
    """The chat with `{"type": "image"}` and `{"type": "text", "text"}` parts, as the chat templates
    of vision-language models take it; a chat without images stays as it is.

    Raises:
        ConfigError: there is not one placeholder an image.
    """
    asked = sum(message["content"].count(PLACEHOLDER) for message in messages)
    if asked != images:
        raise ConfigError(f"{asked} image placeholders ({PLACEHOLDER}) for {images} images")
    if not images:
        return list(messages)
    return [{**message, "content": _parts(message["content"])} for message in messages]


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(text.split(PLACEHOLDER)):
        if place:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts


def prompt_length(vision: Vision | None, prompt_ids: Sequence[int], images: Sequence[Image]) -> int:
    """Positions of a prompt with the room that its images take."""
    return len(prompt_ids if vision is None else vision.expand(prompt_ids, images))
