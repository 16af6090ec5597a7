"""Where the files of a benchmark lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from evals.benchmarks.base import Benchmark, Source
from reopold.config import ConfigError


def home() -> Path:
    """Folder of all state: $REOPOLD_HOME, or `.reopold` in the current directory."""
    return Path(os.environ.get("REOPOLD_HOME") or ".reopold").absolute()


def told(path: str) -> str:
    """A path as results have it: what lies in the home relative to where the home is, so that it
    says nothing of the machine; anything else, a hub id among it, as it is."""
    plain = Path(os.path.normpath(path))
    return str(plain.relative_to(home().parent)) if plain.is_relative_to(home()) else path


def placed(path: str) -> Path:
    """The file that :func:`told` told of."""
    return home().parent / path  # an absolute path stays itself


def default_folders() -> list[Path]:
    """Folders of benchmarks to search: $REOPOLD_BENCHMARKS, then `benchmarks` in the home.

    Raises:
        ConfigError: REOPOLD_BENCHMARKS names no folder.
    """
    folders = [home() / "benchmarks"]
    if named := os.environ.get("REOPOLD_BENCHMARKS"):
        if not Path(named).is_dir():
            raise ConfigError(f"REOPOLD_BENCHMARKS names no folder: {named}")
        folders.insert(0, Path(named).absolute())
    return folders


def find_files(source: Source, folders: Sequence[Path]) -> list[Path]:
    """Its files (or its one folder, where the source is read by folder); empty if none is there."""
    for folder in folders:
        for pattern in source.files:
            if found := _matches(folder, pattern, source):
                return found
    return []


def named_files(benchmark: Benchmark, data: Path) -> list[Path]:
    """The benchmark's files that the user means by `data`: a file, the benchmark's own folder, or
    a folder of benchmarks.

    Raises:
        ConfigError: there is nothing, or it is another benchmark's.
    """
    if not data.exists():
        raise ConfigError(f"no test problems at {data}")
    _refuse_others(benchmark, data)
    if data.is_file():
        return [data]
    source = benchmark.source
    for pattern in source.files:
        parts = PurePosixPath(pattern).parts
        for start in range(len(parts)):  # the own folder may be any of the pattern's
            if found := _matches(data, "/".join(parts[start:]), source):
                return found
    if source.read:
        return [data]
    raise ConfigError(
        f"{data} holds no problems of {benchmark.name}: looked for {', '.join(source.files)}"
    )


def how_to_place(source: Source) -> str:
    """For messages: where files may be put."""
    return (
        f"put {' or '.join(source.files)} into a folder that $REOPOLD_BENCHMARKS names (or into "
        f"{home() / 'benchmarks'}), or name the file, its folder or a folder of benchmarks with "
        "--data"
    )


def _matches(folder: Path, pattern: str, source: Source) -> list[Path]:
    if source.read:
        path = folder / pattern
        return [path] if path.is_dir() else []
    if "*" not in pattern:
        path = folder / pattern
        return [path] if path.is_file() else []
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _refuse_others(benchmark: Benchmark, data: Path) -> None:
    """Many benchmarks call their file test.jsonl and several have 30 items: reading AIME 2025 as
    AIME 2024 would go unnoticed."""
    from evals.benchmarks import BENCHMARKS

    folder = data.name if data.is_dir() else data.parent.name
    if not benchmark.items or folder in _own_folders(benchmark):
        return  # the micro suite's files are anybody's, and their lines are checked
    for other in BENCHMARKS.values():
        if folder in _own_folders(other):
            raise ConfigError(
                f"{data} is {other.name}'s, not {benchmark.name}'s: give --data a folder of "
                "benchmarks, or rename it if it holds other items than its name says"
            )


def _own_folders(benchmark: Benchmark) -> set[str]:
    return {PurePosixPath(pattern).parts[0] for pattern in benchmark.source.files if "/" in pattern}
