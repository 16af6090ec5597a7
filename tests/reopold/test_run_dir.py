"""The run directory: ownership, portability, torn files, locks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reopold.config import ConfigError, RunConfig, TrainConfig
from reopold.run_dir import RunDir, append_line, read_lines

Recipe = Callable[..., RunConfig]


def test_a_folder_of_another_config_is_refused_with_the_difference(
    recipe: Recipe, run_dir: Callable[..., RunDir]
) -> None:
    run = run_dir(recipe())
    assert run.create(recipe()).path == run.path
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        run.create(recipe(train=TrainConfig(steps=99)))
    assert "train.steps             6 -> 99" in str(caught.value)
    assert "--accept train.steps" in str(caught.value)
    assert run.config_file.read_bytes() == before


def test_a_folder_with_other_things_in_it_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        RunDir(tmp_path).create(recipe())
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_study_can_be_moved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same recipe in another place: same bytes in config.json, and the paths still resolve."""
    digests = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        monkeypatch.chdir(folder)
        config = recipe("grpo").with_paths(lambda path: f"./models/{Path(path).name}")
        run = RunDir(Path("runs/a")).create(config)
        digests.append(run.digest())
        assert Path(run.config().data.train).resolve() == (folder / "models/train.jsonl").resolve()
    assert digests[0] == digests[1]
    assert str(tmp_path) not in run.config_file.read_text()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no config.json"), ("{", "not valid JSON")]
)
def test_no_run_directory(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        RunDir(tmp_path).config()


def test_a_study_is_the_same_from_any_directory(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "home" / "study"
    config = recipe("grpo").with_paths(lambda path: str(study / "micro" / Path(path).name))
    run = RunDir(study / "runs" / "a").create(config)
    for place in (tmp_path, tmp_path / "home", study):
        monkeypatch.chdir(place)
        run.create(config)
    assert str(tmp_path) not in run.config_file.read_text()


def test_torn_last_lines_are_left_out_and_cut_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in range(5):
        append_line(run.metrics_file, {"step": step})
    with open(run.metrics_file, "a") as handle:
        handle.write('{"step": 5, "trai')
    assert [line["step"] for line in read_lines(run.metrics_file)] == [0, 1, 2, 3, 4]
    run.cut_back(3)
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [
        0,
        1,
        2,
    ]


def test_a_second_trainer_is_refused_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from reopold.run_dir import RunDir\n"
        f"with RunDir(Path({str(tmp_path)!r})).lock():\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ConfigError, match="another trainer"), RunDir(tmp_path).lock():
        pass
    holder.kill()
    holder.wait()
    with RunDir(tmp_path).lock():
        pass


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (2, 10, 4):
        run.checkpoint(step).mkdir(parents=True)
    (run.checkpoint(10) / "COMPLETE").write_text("{}")
    (run.checkpoint(2) / "COMPLETE").write_text("{}")
    assert run.complete_checkpoints() == [2, 10]
