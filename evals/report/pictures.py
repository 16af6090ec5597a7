"""Pictures in a page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from reopold.config import ConfigError
from reopold.data.images import load_image

#: A file of so many bytes is shown as it is; of a larger one a thumbnail of so many pixels.
SMALL_BYTES, THUMBNAIL = 40_000, 256


def picture(study_dir: Path, path: str) -> str | None:
    """A picture as a `data:` address; None if it is not there, or is none.

    The study's own suite comes first: a study that has moved shows the same.
    """
    name = Path(path).name
    own = [file for file in sorted(study_dir.glob("micro/*/images")) if (file / name).is_file()]
    file = own[0] / name if own else Path(path)
    try:
        image = load_image(str(file))  # whatever is no picture is not shown
        if file.suffix == ".png" and file.stat().st_size <= SMALL_BYTES:
            data = file.read_bytes()
        else:
            buffer = io.BytesIO()
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.save(buffer, format="PNG")
            data = buffer.getvalue()
    except (OSError, ConfigError):
        return None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
