"""The run directory: the only thing a trainer, a flow, an evaluation and a report share.

    RUN_DIR/config.json        the recipe (RunConfig); its digest names the run
    RUN_DIR/manifest.json      what happened: status, steps done, parents, versions, hardware
    RUN_DIR/metrics.jsonl      one line a step (from 0)
    RUN_DIR/events.jsonl       one line an event (start, resume, phase, checkpoint, stop, failure)
    RUN_DIR/rollouts/          a few rollouts at every checkpoint
    RUN_DIR/changes.json       recipe fields that were changed on purpose since the run began
    RUN_DIR/checkpoints/step-000150/{Hugging Face files, trainer/, MANIFEST.json, COMPLETE}
    RUN_DIR/eval/step-000150/BENCHMARK/{results.json, samples.parquet}
    RUN_DIR/train.log          what the trainer printed

Importable without torch: flows and reports read it too. See docs/design/run-directory.md.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reopold.changes import Change, accepted, overlay, settings
from reopold.config import ConfigError, RunConfig
from reopold.integrity import COMPLETE, PRUNED
from reopold.recipes import parse

Status = Literal["new", "running", "stopped", "paused", "finished", "failed"]
Record = dict[str, Any]

#: Events that belong to a step: they are cut back with it. The others tell what the trainer
#: process went through, and stay.
STEP_EVENTS = frozenset({"phase", "checkpoint", "alarm", "no_tokens_kept", "non_finite"})
#: A checkpoint after whole steps, or one that a stop left in the middle of the next step.
_CHECKPOINT = re.compile(r"step-(\d{6,})(-mid)?")


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

    def logs(self) -> tuple[Path, Path]:
        """Logs with lines of steps, which a checkpoint keeps a copy of."""
        return self.metrics_file, self.diagnostics_file

    def rollouts_file(self, step: int) -> Path:
        """A few rollouts of the last of `step` completed steps."""
        return self.path / "rollouts" / f"step-{step:06d}.jsonl"

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

    @property
    def changes_file(self) -> Path:
        return self.path / "changes.json"

    def create(self, config: RunConfig, accept: Sequence[str] = ()) -> RunDir:
        """Write config.json, or accept the one there if it is the same recipe.

        Paths of the recipe are relative to the current directory; in config.json they are relative
        to the run directory, so that a study can be moved and its digest is that of any machine.

        Args:
            accept: fields, or sections, that may differ from the recipe there: the new recipe takes
                its place, and the change is kept in changes.json.

        Raises:
            ConfigError: the folder belongs to another recipe (the difference is shown), or cannot
                be written.
        """
        asked = config.with_paths(self._relative)
        if self.config_file.exists():
            self._change_recipe(asked, accept)
        else:
            claim_folder(self.path, self.config_file.name, asked.canonical_json())
        return self

    def _change_recipe(self, asked: RunConfig, accept: Sequence[str]) -> None:
        there = parse(_read_json(self.config_file), RunConfig, str(self.config_file))
        if there == asked:
            return
        if asked.train.steps < self.last_step():
            raise ConfigError(
                f"{self.path} has made {self.last_step()} steps already: train.steps cannot be "
                f"{asked.train.steps}"
            )
        changed = accepted(
            settings(there.model_dump(mode="json")),
            settings(asked.model_dump(mode="json")),
            accept,
            f"{self.path} belongs to another config; choose another output folder, delete this one "
            "to start over, or accept what differs",
        )
        with self.lock():
            self.add_change(Change(time.time(), self.last_step(), "user", "", changed))
            write_atomic(self.config_file, asked.canonical_json())

    def changes(self) -> list[Change]:
        """What was changed on purpose since the run began, oldest first."""
        if not self.changes_file.exists():
            return []
        return [Change(**change) for change in _read_json(self.changes_file)]

    def attempt(self) -> int:
        """How often the run was rolled back: steps since are other steps than those before."""
        return sum(change.by == "health" for change in self.changes())

    def add_change(self, change: Change) -> None:
        kept = [vars(each) for each in (*self.changes(), change)]
        write_atomic(self.changes_file, json.dumps(kept, indent=2))

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
        """The recipe with its paths made usable from here, and what a rollback has changed.

        Raises:
            ConfigError: config.json is missing, not JSON or not a recipe.
        """
        return self.recipe().with_paths(lambda path: str(self.path / Path(path).expanduser()))

    def recipe(self) -> RunConfig:
        """As :meth:`config`, with the paths as they are written."""
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} holds no config.json: it is no run directory")
        raw = _read_json(self.config_file)
        return parse(overlay(raw, self.changes()), RunConfig, str(self.config_file))

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

    def checkpoint_event(self, step: int, **fields: Any) -> None:
        self.event("checkpoint", step, f"checkpoint after {step} steps", **fields)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` completed steps."""
        return self.checkpoints / f"step-{step:06d}"

    def complete_checkpoints(self) -> list[int]:
        """Completed-step counts of the checkpoints that carry COMPLETE, ascending."""
        return self._steps(COMPLETE)

    def passed_checkpoints(self) -> list[int]:
        """The same, and those of which the retention has left the name only."""
        return sorted({*self._steps(COMPLETE), *self._steps(PRUNED)})

    def missed_checkpoints(self, config: RunConfig) -> set[int]:
        """Scheduled checkpoints that will never be: the run is past them, because its recipe was
        changed on the way or because they were damaged."""
        past = {k for k in config.checkpoint_steps() if k < self.last_step()}
        return past - set(self.passed_checkpoints())

    def resume_points(self) -> list[Path]:
        """Folders that a trainer can go on from, oldest first: a stop in the middle of a step
        leaves `step-000150-mid`, of the step that follows `step-000150`."""
        found = (
            (match, folder)
            for folder in self.checkpoints.glob("step-*")
            if (match := _CHECKPOINT.fullmatch(folder.name)) and (folder / COMPLETE).exists()
        )
        ordered = sorted((int(match[1]), bool(match[2]), folder) for match, folder in found)
        return [folder for _, _, folder in ordered]

    def middle(self, step: int) -> Path:
        """Folder of a checkpoint in the middle of the step after `step` completed ones."""
        return self.checkpoint(step).with_name(f"{self.checkpoint(step).name}-mid")

    def last_step(self) -> int:
        """Completed steps of the newest resume point; 0 if there is none."""
        points = self.resume_points()
        return step_of(points[-1]) if points else 0

    def _steps(self, marker: str) -> list[int]:
        found = (
            _CHECKPOINT.fullmatch(file.parent.name)
            for file in self.checkpoints.glob(f"step-*/{marker}")
        )
        return sorted(int(match[1]) for match in found if match and not match[2])

    def evaluation(self, step: int, benchmark: str) -> Path:
        return self.path / "eval" / f"step-{step:06d}" / benchmark

    def metrics(self) -> list[Record]:
        return read_lines(self.metrics_file)

    def events(self) -> list[Record]:
        return read_lines(self.events_file)

    def cut_back(self, step: int, kept: Path | None = None) -> None:
        """Drop the lines of steps >= `step` (and torn ones): they will run again.

        Args:
            kept: folder with the logs as they were after `step` steps, for those that hold less
                than that today (a copy made in mid-write, a disk that lost its last writes).
        """
        for file in self.logs():
            lines = [line for line in read_lines(file) if line["step"] < step]
            if kept is not None and (kept / file.name).exists():
                saved = [line for line in read_lines(kept / file.name) if line["step"] < step]
                lines = lines if len(lines) == len(saved) else saved
            _write_lines(file, lines)
        events = [
            event
            for event in self.events()
            if event["kind"] not in STEP_EVENTS
            or event["step"] < step + (event["kind"] == "checkpoint")  # it counts completed steps
        ]
        _write_lines(self.events_file, events)
        told = {event["step"] for event in events if event["kind"] == "checkpoint"}
        if step and step not in told:  # killed between the checkpoint and the word of it
            self.checkpoint_event(step)

    @contextmanager
    def lock(self, wait: float = 1.0) -> Iterator[None]:
        """Hold the run directory; the kernel frees it if the holder dies.

        Args:
            wait: seconds to wait for a holder that is on its way out.

        Raises:
            ConfigError: another trainer holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait
        with open(self.path / ".lock", "a+", encoding="utf-8") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise ConfigError(self._held_by()) from error
                    time.sleep(0.05)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            handle.truncate(0)
            handle.write(json.dumps(holder))
            handle.flush()
            yield

    def holder(self) -> Record | None:
        """`pid`, `host` and `since` of the process that holds the run directory; None if none."""
        file = self.path / ".lock"
        if not file.exists():
            return None
        with open(file, encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = handle.read()
                holder: Record = json.loads(text) if text.endswith("}") else {}
                return holder
        return None

    def _held_by(self) -> str:
        holder = self.holder() or {}
        who = f" (process {holder['pid']} on {holder['host']})" if holder else ""
        return f"another trainer is at work in {self.path}{who}; stop it first, or wait"


def step_of(checkpoint: Path) -> int:
    """Completed steps of a checkpoint folder, by its name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` so that a reader, or a crash, sees the old content or the new, never a part.

    Text is written as UTF-8.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk
        raise


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def read_object(file: Path, absent: str) -> dict[str, Any]:
    """The JSON object in a file that people may have touched.

    Raises:
        ConfigError: there is no file (`absent` says so), it cannot be read, or holds no object.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(absent) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} must hold a mapping, not {type(raw).__name__}")
    return raw


def append_line(path: Path, record: Record) -> None:
    """Append one JSON line in a single write, so that lines never interleave."""
    line = (json.dumps(record) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # the last writer was killed in the middle of its line
        written = os.write(handle, line)
        if written < len(line):  # a full disk takes what fits
            os.ftruncate(handle, os.fstat(handle).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[Record]:
    """The JSON lines of `path`; what a killed or powerless writer has torn is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _write_lines(path: Path, lines: Sequence[Record]) -> None:
    if lines or path.exists():
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def _diff(old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "there", "asked for", lineterm="", n=0
    )
    return "\n".join(line for line in lines if not line.startswith("@@"))
