"""Reading a benchmark from the Hugging Face hub, or from its cache."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evals.benchmarks.base import Row, Source
from evals.benchmarks.places import home, how_to_place
from evals.benchmarks.reading import Item, read_items
from reopold.config import ConfigError
from reopold.run_dir import write_atomic


class Fetched(NamedTuple):
    items: list[Item]
    revision: str | None
    """Commit that was read; None where nobody says it (a local copy)."""
    images: tuple[str, ...] = ()
    """Columns whose value is the path of an image, named by the image's SHA-256."""


def fetch(source: Source) -> Fetched:
    """Rows of the data set at its pinned commit, else at the newest, whose commit is returned.

    Images are saved once under the home, by content.

    Raises:
        ConfigError: the hub cannot be reached and its cache has no copy, or there is no such data
            set; it says how to place local files.
    """
    try:
        revision = source.revision or _newest(source.hub)
        if source.hub_files:
            return Fetched(_raw_files(source, revision), revision)
        return _load(source, revision)
    except ConfigError:
        raise
    except Exception as error:  # the libraries' errors have no base of their own
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ConfigError(
            f"{source.hub} cannot be read from the hub ({reason}); {how_to_place(source)}"
        ) from error


def _newest(hub: str) -> str | None:
    """The commit that the hub would give now; None offline and for a local copy."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or Path(hub).is_dir():
        return None
    return HfApi().dataset_info(hub).sha


def _raw_files(source: Source, revision: str | None) -> list[Item]:
    from huggingface_hub import hf_hub_download

    paths = [
        hf_hub_download(source.hub, name, repo_type="dataset", revision=revision)
        for name in source.hub_files
    ]
    return [
        item._replace(where=item.where.replace(path, f"{source.hub}/{name}"))
        for path, name in zip(paths, source.hub_files, strict=True)
        for item in read_items(Path(path))
    ]


def _load(source: Source, revision: str | None) -> Fetched:
    from datasets import Image, load_dataset

    configs = source.config if isinstance(source.config, tuple) else (source.config,)
    splits = source.split if isinstance(source.split, tuple) else (source.split,)
    several = len(configs) * len(splits) > 1
    items: list[Item] = []
    images: set[str] = set()
    for config, split in itertools.product(configs, splits):
        rows = load_dataset(source.hub, config, split=split, revision=revision)
        columns = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
        for column in columns:
            rows = rows.cast_column(column, Image(decode=False))
        images.update(columns)
        name = config if len(configs) > 1 else split
        for number, row in enumerate(_with_saved_images(rows, columns), start=1):
            where = f"{source.hub}, {name}, row {number}"
            items.append(Item(where, {"source": name} | row if several else row))
    return Fetched(items, revision, tuple(sorted(images)))


def _with_saved_images(rows: Any, columns: list[str]) -> Iterator[Row]:
    for row in rows:
        yield row | {column: _saved(row[column]) for column in columns}


def _saved(image: dict[str, Any] | None) -> str | None:
    """Path of an image that the data set holds as bytes or as a path."""
    if image is None:
        return None
    if not image["bytes"]:
        return str(image["path"])
    suffix = Path(image["path"] or "").suffix or ".png"
    name = f"{hashlib.sha256(image['bytes']).hexdigest()}{suffix}"
    path = home() / "benchmark-images" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, image["bytes"])
    return str(path)
