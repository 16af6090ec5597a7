"""The run directory: the only thing a trainer, a flow, an evaluation and a report share.

    RUN_DIR/config.json        the recipe (RunConfig); its digest names the run
    RUN_DIR/manifest.json      what happened: status, steps done, parents, versions, hardware
    RUN_DIR/metrics.jsonl      one line a step (from 0)
    RUN_DIR/events.jsonl       one line an event (start, resume, phase, checkpoint, stop, failure)
    RUN_DIR/rollouts/          a few rollouts at every checkpoint
    RUN_DIR/checkpoints/step-000150/{Hugging Face files, trainer/, COMPLETE}
    RUN_DIR/eval/step-000150/BENCHMARK/{results.json, samples.parquet}
    RUN_DIR/train.log          what the trainer printed

Importable without torch: flows and reports read it too. See docs/design/run-directory.md.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reopold.config import ConfigError, RunConfig, parse

Status = Literal["new", "running", "stopped", "finished", "failed"]
Record = dict[str, Any]


@dataclass(frozen=True)
class RunDir:
    """Paths of one run and the few operations that keep it consistent."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def diagnostics_file(self) -> Path:
        return self.path / "diagnostics.jsonl"

    def dump(self, step: int) -> Path:
        """File that explains a step (from 0) that could not be made."""
        return self.path / "dumps" / f"step-{step:06d}.pt"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        return self.path / "train.log"

    def create(self, config: RunConfig) -> RunDir:
        """Write config.json, or accept the one there if it is the same recipe.

        Paths of the recipe are relative to the current directory; in config.json they are relative
        to the run directory, so that a study can be moved and its digest is that of any machine.

        Raises:
            ConfigError: the folder belongs to another recipe (the difference is shown), or cannot
                be written.
        """
        claim_folder(
            self.path, self.config_file.name, config.with_paths(self._relative).canonical_json()
        )
        return self

    def _relative(self, path: str) -> str:
        given = Path(path).expanduser()
        study = self.path.absolute().parent.parent
        if given.is_absolute() and not given.is_relative_to(study):
            return str(given)  # outside the study and named absolutely: it stays where it is
        relative = os.path.relpath(given.absolute(), self.path.absolute())
        return relative if relative.startswith(".") else f"./{relative}"

    def digest(self) -> str:
        """SHA-256 of config.json: the run's name among all runs."""
        return hashlib.sha256(self.config_file.read_bytes()).hexdigest()

    def config(self) -> RunConfig:
        """The recipe with its paths made usable from here.

        Raises:
            ConfigError: config.json is missing, not JSON or not a recipe.
        """
        try:
            raw = json.loads(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.path} holds no config.json: it is no run directory"
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.config_file} is not valid JSON: {error}") from error
        config = parse(raw, RunConfig, str(self.config_file))
        return config.with_paths(lambda path: str(self.path / Path(path).expanduser()))

    def manifest(self) -> Record:
        """The manifest, or `{"status": "new", "step": 0}` before the first start."""
        if not self.manifest_file.exists():
            return {"status": "new", "step": 0}
        try:
            manifest: Record = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{self.manifest_file} is damaged: {error}") from error
        return manifest

    def update_manifest(self, **fields: Any) -> Record:
        manifest = {**self.manifest(), **fields, "updated_at": time.time()}
        write_atomic(self.manifest_file, json.dumps(manifest, indent=2, sort_keys=True))
        return manifest

    def event(self, kind: str, step: int, message: str, **fields: Any) -> None:
        append_line(
            self.events_file,
            {"time": time.time(), "kind": kind, "step": step, "message": message, **fields},
        )

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` completed steps."""
        return self.checkpoints / f"step-{step:06d}"

    def complete_checkpoints(self) -> list[int]:
        """Completed-step counts of the checkpoints that carry COMPLETE, ascending."""
        return sorted(
            int(marker.parent.name.removeprefix("step-"))
            for marker in self.checkpoints.glob("step-*/COMPLETE")
        )

    def evaluation(self, step: int, benchmark: str) -> Path:
        return self.path / "eval" / f"step-{step:06d}" / benchmark

    def metrics(self) -> list[Record]:
        return read_lines(self.metrics_file)

    def events(self) -> list[Record]:
        return read_lines(self.events_file)

    def cut_back(self, step: int) -> None:
        """Drop the lines of steps >= `step` (and a torn last line): they will run again."""
        for file in (self.metrics_file, self.diagnostics_file):
            if file.exists():
                kept = [line for line in read_lines(file) if line["step"] < step]
                write_atomic(file, "".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory; the kernel frees it if the holder dies.

        Raises:
            ConfigError: another trainer holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"another trainer is at work in {self.path}") from error
            yield


def claim_folder(folder: Path, file: str, text: str) -> None:
    """Make `folder` belong to the config `text`, kept in `file`; accept it if it already does.

    Raises:
        ConfigError: it belongs to another config, holds something else, or cannot be written.
    """
    marker = folder / file
    try:
        if marker.exists():
            there = marker.read_text(encoding="utf-8")
            if there == text:
                return
            raise ConfigError(
                f"{folder} belongs to another config; choose another output folder, or delete this "
                f"one to start over:\n{_diff(there, text)}"
            )
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty and has no {file}; choose another output folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(marker, text)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` so that a reader, or a crash, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def append_line(path: Path, record: Record) -> None:
    """Append one JSON line in a single write, so that lines never interleave."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[Record]:
    """The JSON lines of `path`; a torn last line (the writer was killed) is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = lines[:-1]  # what follows the last newline is empty or torn
    return [json.loads(line) for line in complete]


def _diff(old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "there", "asked for", lineterm="", n=0
    )
    return "\n".join(line for line in lines if not line.startswith("@@"))
