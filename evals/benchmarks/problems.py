"""The items of a benchmark: found on this machine or on the hub, counted, ready to sample from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from evals.benchmarks.base import Benchmark, Problem, Row
from evals.benchmarks.places import default_folders, find_files, how_to_place, named_files
from evals.benchmarks.reading import Item, read_items
from reopold.config import ConfigError
from reopold.data.images import find_image

#: Where images lie, seen from the folder of the file that names them.
IMAGE_FOLDERS = (".", "images", "hallusion_bench", "..", "../images")
#: Seconds of reading images after which a bar shows how far it is.
PATIENCE = 3.0


@dataclass(frozen=True)
class Problems:
    problems: list[Problem]
    digest: str
    """SHA-256 of the file that was read, or of a canonical form of several."""
    origin: str
    """For people: the file or the hub id, and the number of items where it is not the usual."""
    revision: str | None = None
    """Commit of the hub's data set; None for local files."""

    def check_samplable(self) -> None:
        """Read every image once to its end, however many items show it.

        Raises:
            ConfigError: some items have answers only, or images that are not there or that nobody
                could show a model (see :func:`reopold.data.images.find_image`).
        """
        if silent := [problem.id for problem in self.problems if not problem.messages]:
            raise ConfigError(
                f"{self.origin} has answers without questions ({_some(silent)}): enough to grade "
                "saved outputs, not to sample"
            )
        images = list(dict.fromkeys(image for p in self.problems for image in p.images))
        if missing := [image for image in images if not Path(image).is_file()]:
            raise ConfigError(
                f"{len(missing)} images of {self.origin} are not there ({_some(missing)}): place "
                "them, or ask for fewer items"
            )
        _read_images(images)


def _read_images(paths: Sequence[str]) -> None:
    from tqdm import tqdm  # reads its environment when it is imported, which a command sets

    with ThreadPoolExecutor() as pool:
        bar = tqdm(
            pool.map(find_image, paths),
            total=len(paths),
            desc="reading images",
            unit="image",
            delay=PATIENCE,
            disable=None,  # but on terminals
        )
        for _ in bar:
            pass


class _Loaded(NamedTuple):
    items: list[Item]
    digest: str
    origin: str
    revision: str | None = None


def load_problems(
    benchmark: Benchmark, data: str | Path | None = None, *, limit: int | None = None
) -> Problems:
    """A benchmark's items, in the order of its files.

    Args:
        data: a file, the benchmark's own folder, or a folder of benchmarks; None looks in
            $REOPOLD_BENCHMARKS, in the home and on the hub, in this order.
        limit: only the first so many; the number of items is checked before. Of benchmarks whose
            items belong together, as many of their first clusters as fit, at least one.

    Raises:
        ConfigError: there is nothing, something cannot be read, an item (named by file and line)
            is malformed or repeats an id, or there are more or fewer than the benchmark has.
    """
    loaded = _load(benchmark, Path(data).absolute() if data else None)
    count = len(loaded.items)
    if benchmark.items and count not in benchmark.items:
        expected = " or ".join(map(str, benchmark.items))
        raise ConfigError(
            f"{loaded.origin} holds {count} items; {benchmark.name} has {expected}: the file is "
            "cut, padded, or another benchmark's"
        )
    problems = _problems(benchmark, loaded.items)
    if limit is not None and limit < count:
        problems = _whole_clusters(problems, limit) if benchmark.cluster else problems[:limit]
    return Problems(problems, loaded.digest, _origin(benchmark, loaded), loaded.revision)


def _whole_clusters(problems: Sequence[Problem], limit: int) -> list[Problem]:
    """The first clusters that have no more items than that together, at least one: metrics of a
    figure or a group need all of it, whose items may be far apart in the file."""
    sizes = Counter(problem.cluster for problem in problems)
    kept: set[str] = set()
    total = 0
    for cluster, size in sizes.items():  # in order of appearance
        if kept and total + size > limit:
            break
        kept.add(cluster)
        total += size
    return [problem for problem in problems if problem.cluster in kept]


def _origin(benchmark: Benchmark, loaded: _Loaded) -> str:
    """Where the items are from, with what nobody should overlook about them."""
    count, remarks = len(loaded.items), []
    if benchmark.items and count != benchmark.items[0]:
        remarks.append(f"{count} items; the main set has {benchmark.items[0]}")
    if benchmark.describe:
        remarks.append(benchmark.describe([item.row for item in loaded.items]))
    return f"{loaded.origin} ({'; '.join(remarks)})" if remarks else loaded.origin


def _load(benchmark: Benchmark, data: Path | None) -> _Loaded:
    source = benchmark.source
    files = named_files(benchmark, data) if data else find_files(source, default_folders())
    if files and source.read:
        items = [
            Item(f"{files[0]}, row {number}", row, files[0])
            for number, row in enumerate(source.read(files[0]), start=1)
        ]
        return _Loaded(items, rows_digest([item.row for item in items]), str(files[0]))
    if files:
        return _read(files)
    if not source.hub:
        raise ConfigError(f"{benchmark.name} has no data here: {how_to_place(source)}")
    from evals.benchmarks.hub import fetch

    fetched = fetch(source)
    plain = [_by_content(item.row, fetched.images) for item in fetched.items]
    return _Loaded(fetched.items, rows_digest(plain), source.hub, fetched.revision)


def _read(files: list[Path]) -> _Loaded:
    digests = {file: _file_digest(file) for file in files}
    if len(files) == 1:
        return _Loaded(read_items(files[0]), digests[files[0]], str(files[0]))
    common = _common_folder(files)
    names = {file: file.relative_to(common).as_posix() for file in files}
    listing = "".join(f"{digests[file]}  {names[file]}\n" for file in files)
    items = [
        item._replace(row={"source": names[file]} | item.row)
        for file in files
        for item in read_items(file)
    ]
    return _Loaded(items, _sha256(listing), f"{common} ({len(files)} files)")


def _problems(benchmark: Benchmark, items: Sequence[Item]) -> list[Problem]:
    problems: dict[str, Problem] = {}
    for item in items:
        try:
            problem = _problem(benchmark, item)
        except ConfigError as error:
            raise ConfigError(f"{item.where}: {error}") from error
        name = problem.id
        if benchmark.source.repeats:
            name = _unused(name, problems)
        elif name in problems:
            raise ConfigError(f"{item.where}: id '{name}' is there twice")
        problems[name] = replace(problem, id=name)  # the cluster keeps the repeated name
    return list(problems.values())


def _problem(benchmark: Benchmark, item: Item) -> Problem:
    row = item.row
    messages = benchmark.messages(row)
    name = benchmark.identify(row)
    return Problem(
        id=name,
        messages=messages,
        row=row,
        gold=benchmark.gold(row),
        images=[_image_path(image, item.folder) for image in benchmark.images(row)],
        cluster=benchmark.cluster(row) if benchmark.cluster else name,
    )


def _unused(name: str, taken: dict[str, Problem]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _image_path(image: str, folder: Path | None) -> str:
    """The file that `image` names; where there is none, its first likely place."""
    if folder is None or Path(image).is_absolute():
        return image
    places = [(folder / near / image).resolve() for near in IMAGE_FOLDERS]
    return str(next((place for place in places if place.is_file()), places[0]))


def rows_digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows as sorted JSON, a line each."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, default=str) for row in rows)
    return _sha256("".join(f"{line}\n" for line in lines))


def _by_content(row: Row, images: Sequence[str]) -> Row:
    """The row with its saved images as their names, which tell their content but not the place."""
    return row | {column: Path(row[column]).name for column in images if row.get(column)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _common_folder(files: Sequence[Path]) -> Path:
    common = files[0].parent
    while not all(file.is_relative_to(common) for file in files):
        common = common.parent
    return common


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
