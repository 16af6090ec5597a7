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

        Raises:
            ConfigError: the folder belongs to another recipe (the difference is shown), or cannot
                be written.
        """
        text = config.canonical_json()
        if self.config_file.exists():
            there = self.config_file.read_text(encoding="utf-8")
            if there != text:
                raise ConfigError(
                    f"{self.path} belongs to another config; choose another output folder, or "
                    f"delete this one to start over:\n{_diff(there, text)}"
                )
            return self
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and holds no run; choose another folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.config_file, text)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.path}: {error.strerror}") from error
        return self

    def config(self) -> RunConfig:
        """Raises ConfigError if config.json is missing, not JSON or not a recipe."""
        try:
            raw = json.loads(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} holds no config.json: it is no run directory") from error
        except json.JSONDecodeError as error:
            raise ConfigError(f"{self.config_file} is not valid JSON: {error}") from error
        return parse(raw, RunConfig, str(self.config_file))

    def manifest(self) -> Record:
        """The manifest, or `{"status": "new", "step": 0}` before the first start."""
        if not self.manifest_file.exists():
            return {"status": "new", "step": 0}
        manifest: Record = json.loads(self.manifest_file.read_text(encoding="utf-8"))
        return manifest

    def update_manifest(self, **fields: Any) -> Record:
        manifest = {**self.manifest(), **fields, "updated_at": time.time()}
        write_atomic(self.manifest_file, json.dumps(manifest, indent=2, sort_keys=True))
        return manifest

    def event(self, kind: str, step: int, message: str, **fields: Any) -> None:
        append_line(self.events_file, {"time": time.time(), "kind": kind, "step": step, "message": message, **fields})

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` completed steps."""
        return self.checkpoints / f"step-{step:06d}"

    def complete_checkpoints(self) -> list[int]:
        """Completed-step counts of the checkpoints that carry COMPLETE, ascending."""
        return sorted(int(marker.parent.name.removeprefix("step-")) for marker in self.checkpoints.glob("step-*/COMPLETE"))

    def evaluation(self, step: int, benchmark: str) -> Path:
        return self.path / "eval" / f"step-{step:06d}" / benchmark

    def metrics(self) -> list[Record]:
        return read_lines(self.metrics_file)

    def events(self) -> list[Record]:
        return read_lines(self.events_file)

    def cut_back(self, step: int) -> None:
        """Drop metric lines of steps >= `step` (and a torn last line): they will run again."""
        if self.metrics_file.exists():
            kept = [line for line in self.metrics() if line["step"] < step]
            write_atomic(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

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
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "there", "asked for", lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith("@@"))
