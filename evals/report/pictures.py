"""Pictures in a page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from evals.benchmarks.places import placed
from evals.report.study import Study
from reopold.config import ConfigError
from reopold.data.images import load_image

#: A file of so many bytes is shown as it is; of a larger one a thumbnail of so many pixels.
SMALL_BYTES, THUMBNAIL = 40_000, 256


def picture(study: Study, path: str) -> str | None:
    """A picture as a `data:` address; None if it is not there, or is none.

    The study's own suite comes first: a study that has moved shows the same. What is shown of it is
    noted in `study.pictures`.
    """
    name = Path(path).name
    own = [f for f in sorted(study.folder.glob("micro/*/images")) if (f / name).is_file()]
    file = own[0] / name if own else placed(path)
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
    study.pictures.add(file)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
