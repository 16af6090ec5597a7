"""Damaged files, full and read-only disks, copies in mid-write, clocks that jump."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from reopold.checkpoint import copied
from reopold.config import EvaluationConfig
from reopold.integrity import faults, quarantine, seal
from reopold.retention import prune
from reopold.run_dir import RunDir, append_line, read_lines
from tests.faults.compare import assert_same
from tests.faults.conftest import MakeRecipe, Straight
from tests.faults.zygote import Zygote

pytestmark = pytest.mark.integration


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def tear(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def lose(file: Path, chance: random.Random) -> None:
    file.unlink()


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, tear, lose]


def copy_of(run: RunDir, place: Path) -> RunDir:
    """Beside the original's parent: its relative paths still hold."""
    return RunDir(Path(shutil.copytree(run.path, place)))


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_found(
    damage: Callable[[Path, random.Random], None],
    small: MakeRecipe,
    straight: Straight,
    tmp_path: Path,
) -> None:
    """Each file of a checkpoint, at a random place, three times over."""
    whole = straight(small()).checkpoint(6)
    assert faults(whole) == []
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert len(files) >= 12
    for number, name in enumerate(files * 3):
        folder = Path(shutil.copytree(whole, tmp_path / f"step-{number:06d}"))
        damage(folder / name, random.Random(number))
        wrong = faults(folder)
        assert wrong, name
        if name.name not in ("COMPLETE", "MANIFEST.json"):
            assert name.name in wrong[0] and len(wrong) == 1


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", flip), ("trainer/state.json", tear), ("MANIFEST.json", flip)],
)
def test_the_checkpoint_before_a_damaged_one_is_used(
    name: str,
    damage: Callable[[Path, random.Random], None],
    zygote: Zygote,
    small: MakeRecipe,
    straight: Straight,
    tmp_path: Path,
) -> None:
    run, log = copy_of(straight(small()), tmp_path / "run"), tmp_path / "log"
    for step in (6, 4):
        damage(run.checkpoint(step) / name, random.Random(step))
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert_same(straight(small()), run)
    damaged = [event for event in run.events() if event["kind"] == "damaged_checkpoint"]
    assert [event["step"] for event in damaged] == [6, 4]
    assert Path(name).name in damaged[0]["message"] and "step-000006" in damaged[0]["message"]
    assert sorted(p.name for p in run.checkpoints.glob("damaged-*")) == [
        "damaged-step-000004",
        "damaged-step-000006",
    ]


def test_a_half_written_checkpoint_is_set_aside(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    run, log = copy_of(straight(small()), tmp_path / "run"), tmp_path / "log"
    (run.checkpoint(6) / "COMPLETE").unlink()
    (run.checkpoints / ".step-000006.77").mkdir()
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert_same(straight(small()), run)
    assert "it was never finished" in log.read_text()


def test_without_any_whole_checkpoint_it_starts_over(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    run, log = copy_of(straight(small()), tmp_path / "run"), tmp_path / "log"
    for step in run.complete_checkpoints():
        tear(run.checkpoint(step) / "model.safetensors", random.Random(step))
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert_same(straight(small()), run)


def test_a_damaged_parent_is_refused(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    parent = copy_of(straight(small()), tmp_path / "parent").checkpoint(6)
    config = small()
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"student": str(parent)})}
    )
    flip(parent / "model.safetensors", random.Random(1))
    run, log = RunDir(tmp_path / "run").create(config), tmp_path / "log"
    assert zygote.run("reopold.train", str(run.path), log=log) == 2
    assert "is damaged: model.safetensors has changed" in log.read_text()


@pytest.mark.parametrize("seed", range(3))
def test_torn_logs_are_mended_from_the_checkpoint(
    seed: int, zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    """A disk without power loses the ends of logs, or all of them; the checkpoint has copies."""
    run, log = copy_of(straight(small()), tmp_path / "run"), tmp_path / "log"
    shutil.rmtree(run.checkpoint(6))
    chance = random.Random(seed)
    for file in (run.metrics_file, run.diagnostics_file, run.events_file):
        tear(file, chance)
    if seed == 0:
        run.metrics_file.unlink()
    append_line(run.events_file, {"time": 0, "kind": "stop", "step": 1, "message": "after a tear"})
    assert read_lines(run.events_file)[-1]["message"] == "after a tear"
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    for one, other in zip(run.metrics(), straight(small()).metrics(), strict=True):
        assert one["step"] == other["step"] and one["train/loss"] == other["train/loss"]
    assert [line["step"] for line in read_lines(run.diagnostics_file)] == list(range(6))


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[None]:
    """A file system of a given size at `place`."""
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


SIZES = [4, 16, 60, 120, 200, 320, 420, 520, 620]


def test_a_full_disk_ends_a_run_cleanly_and_it_goes_on_with_more_room(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    """Disks of many sizes are full at as many different writes."""
    said, steps = [], []
    for kib in SIZES:
        disk = tmp_path / f"disk-{kib}"
        with small_disk(disk, kib):
            config, log = small(), tmp_path / f"log-{kib}"
            # As deep as the reference, so that the relative paths of the two are the same.
            run = RunDir(disk).create(config)
            code = zygote.run("reopold.train", str(run.path), log=log)
            text = log.read_text()
            assert code == 1, f"{kib} KiB: {text}"
            assert "No space left on device" in text
            said.append("a checkpoint could not be written" in text)
            steps.append(run.last_step())
            for point in run.resume_points():
                assert not faults(point)
            assert not [p.name for p in run.path.rglob(".*") if p.name != ".lock"]
            remount(disk, "size=64m")
            assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
            assert_same(straight(config), run)
    assert any(said) and not all(said), "some writes were a checkpoint's and some were not"
    assert len(set(steps)) > 3
    print(f"\nfull at {SIZES} KiB: went on from steps {steps}")


def test_a_read_only_folder_is_said_before_any_work(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    with small_disk(disk, 64_000):
        run = RunDir(disk).create(small())
        assert zygote.run("reopold.train", str(run.path), "--until", "2", log=log) == 0
        remount(disk, "ro")
        assert zygote.run("reopold.train", str(run.path), log=tmp_path / "ro") == 1
        text = (tmp_path / "ro").read_text()
        assert "Read-only file system" in text and "Traceback" not in text
        remount(disk, "rw")
        assert zygote.run("reopold.train", str(run.path), log=log) == 0
        assert_same(straight(small()), run)


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_made_in_mid_write_goes_on_to_the_same_bits(
    seed: int, zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    """Another host with a copy that nobody waited for."""
    run = RunDir(tmp_path / "run").create(small())
    child = zygote.start("reopold.train", str(run.path), log=tmp_path / "log")
    time.sleep(random.Random(seed).uniform(0.1, 0.45))
    copy = RunDir(tmp_path / "copy")
    copy.path.mkdir()
    for part in ("checkpoints", ".") if seed % 2 else (".",):  # logs after checkpoints, or before
        source, target = run.path / part, copy.path / part
        command = ["cp", "-r", f"{source}/.", str(target)]
        subprocess.run(command, capture_output=True, check=False)  # files come and go meanwhile
    child.kill(signal.SIGKILL)
    child.wait()
    assert zygote.run("reopold.train", str(copy.path), log=tmp_path / "log") == 0
    assert_same(straight(small()), copy)


def test_clocks_may_jump(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    run, log = RunDir(tmp_path / "run").create(small()), tmp_path / "log"
    for until in ("2", "6"):
        code = zygote.run("reopold.train", str(run.path), "--until", until, log=log,
                          fault={"at": "clock"})  # fmt: skip
        assert code == 0, log.read_text()
    assert_same(straight(small()), run)
    assert 0.0 < run.manifest()["seconds"] < 60.0
    assert all(line["perf/seconds_total"] > 0.0 for line in run.metrics())


def test_what_retention_keeps(small: MakeRecipe, tmp_path: Path) -> None:
    """The newest, the best, the last of the run, and whatever waits for its evaluation."""
    config = small(
        evaluation=EvaluationConfig(data="./test.jsonl"),
        train={"steps": 10, "checkpoint_every": 2, "keep_last": 1, "keep_best": 1},
    )
    run = RunDir(tmp_path / "run").create(config)

    def checkpoint(step: int, name: str = "") -> Path:
        folder = run.checkpoints / (name or f"step-{step:06d}")
        (folder / "trainer").mkdir(parents=True)
        (folder / "config.json").write_text(str(step))
        seal(folder, step)
        return folder

    def evaluate(step: int, score: float) -> None:
        digest = json.loads((run.checkpoint(step) / "COMPLETE").read_text())["digest"]
        folder = run.evaluation(step, "micro_maths")
        folder.mkdir(parents=True)
        found = {"checkpoint_digest": digest, "scores": [{"value": score}]}
        (folder / "results.json").write_text(json.dumps(found))

    for step in (1, 2, 3, 4):
        checkpoint(step)
    checkpoint(3, "step-000003-mid")
    checkpoint(6)
    assert [p.name for p in prune(run, config)] == ["step-000001", "step-000003", "step-000003-mid"]
    assert run.complete_checkpoints() == [2, 4, 6]  # nothing is evaluated yet
    for step, score in ((2, 0.5), (4, 0.3), (6, 0.4)):
        evaluate(step, score)
    digest = json.loads((run.checkpoint(4) / "COMPLETE").read_text())["digest"]
    prune(run, config)
    assert run.complete_checkpoints() == [2, 6] and run.passed_checkpoints() == [2, 4, 6]
    assert [p.name for p in run.checkpoint(4).iterdir()] == ["PRUNED"]
    assert json.loads((run.checkpoint(4) / "PRUNED").read_text())["digest"] == digest
    checkpoint(8)
    prune(run, config)
    assert run.complete_checkpoints() == [2, 8]


def test_a_snapshot_shares_nothing_with_the_model_and_keeps_its_ties() -> None:
    """What is written behind the training must not move with it."""
    embedding = torch.nn.Parameter(torch.ones(4, 3))
    weights = {"embedding": embedding, "head": embedding, "norm": torch.nn.Parameter(torch.ones(3))}
    copies = copied(weights)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(1.0)
    assert all(bool((copy == 1.0).all()) for copy in copies.values())
    assert copies["head"].data_ptr() == copies["embedding"].data_ptr()
    assert copies["norm"].data_ptr() != copies["embedding"].data_ptr()


def test_a_second_damaged_folder_does_not_replace_the_first(tmp_path: Path) -> None:
    places = []
    for _ in range(3):
        folder = tmp_path / "step-000004"
        folder.mkdir()
        places.append(quarantine(folder).name)
    assert places == ["damaged-step-000004", "damaged-step-000004-2", "damaged-step-000004-3"]
