"""`python -m evals.run` from checkpoint to files, with a real (untrained) model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evals.evaluation import ensure_results, evaluate_checkpoint, prepare
from evals.results import Results, load_results, read_results
from evals.run import main
from evals.stats import score_interval
from reopold.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
)
from reopold.integrity import seal
from reopold.run_dir import RunDir

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, settings: EvaluationConfig) -> RunDir:
    """A run directory with two complete checkpoints and one still being written."""
    config = RunConfig(
        name="student",
        method="sft",
        model=ModelConfig(student="student"),
        data=DataConfig(train="train.jsonl"),
        evaluation=settings,
    )
    run = RunDir(tmp_path / "run").create(config)
    for step in (25, 50):
        shutil.copytree(checkpoint, run.checkpoint(step))
    shutil.copytree(checkpoint, run.checkpoint(75), ignore=shutil.ignore_patterns("COMPLETE"))
    return run


def test_scores_follow_from_the_samples(
    tmp_path: Path, checkpoint: Path, settings: EvaluationConfig
) -> None:
    results = evaluate_checkpoint(checkpoint, settings, tmp_path / "out")
    frame = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert read_results(tmp_path / "out") == results
    assert (results.n, results.k, len(frame)) == (12, 3, 36)
    assert results.checkpoint_step == 75
    assert results.checkpoint_digest == json.loads((checkpoint / "COMPLETE").read_text())["digest"]
    questions = frame.groupby("question_id")["correct"]
    for metric, values in (("avg@k", questions.mean()), ("pass@k", questions.any())):
        score = results.score(metric)  # type: ignore[arg-type]
        interval = score_interval([float(value) for value in values])
        assert (score.value, score.low, score.high) == pytest.approx(
            (values.mean(), interval.low, interval.high)
        )
    assert results.truncated_fraction == (frame["finish_reason"] == "length").mean() > 0
    assert results.no_answer_fraction == frame["extracted"].isna().mean() > 0
    assert (frame["tokens"] <= settings.max_new_tokens).all()
    assert ((frame["finish_reason"] == "length") <= (frame["tokens"] == 12)).all()


def test_scores_do_not_depend_on_the_batch(
    tmp_path: Path, checkpoint: Path, settings: EvaluationConfig
) -> None:
    frames = []
    for batch_size in (512, 7):
        changed = settings.model_copy(update={"batch_size": batch_size})
        evaluate_checkpoint(checkpoint, changed, tmp_path / str(batch_size))
        frame = pd.read_parquet(tmp_path / str(batch_size) / "samples.parquet")
        frames.append(frame.drop(columns="seconds"))
    pd.testing.assert_frame_equal(frames[0], frames[1])
    assert frames[0]["response"].nunique() > 30  # repeats are not copies of each other


def test_greedy_answers_are_transformers_own(
    tmp_path: Path, checkpoint: Path, settings: EvaluationConfig
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    greedy = settings.model_copy(update={"temperature": 0.0, "samples": 1})
    evaluate_checkpoint(checkpoint, greedy, tmp_path)
    frame = pd.read_parquet(tmp_path / "samples.parquet")
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    for prompt, response in zip(frame["prompt"], frame["response"], strict=True):
        messages = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        )
        output = model.generate(**encoded, do_sample=False, max_new_tokens=12)
        ids = output[0, encoded["input_ids"].shape[1] :]
        assert response == tokenizer.decode(ids, skip_special_tokens=True)


def stamp(folder: Path) -> int:
    return (folder / "results.json").stat().st_mtime_ns


def test_a_run_is_evaluated_once(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run.path), "--steps", "50"]) == 0
    assert [results.checkpoint_step for results in load_results(run.path)] == [50]
    first = stamp(run.evaluation(50, "micro_maths"))
    assert main([str(run.path)]) == 0
    assert [results.checkpoint_step for results in load_results(run.path)] == [25, 50]
    assert stamp(run.evaluation(50, "micro_maths")) == first
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {s} micro_maths" for s in (50, 25, 50)]
    assert [line.endswith("(kept)") for line in lines] == [False, False, True]
    assert "avg@3" in lines[0] and "maj@3" in lines[0]


def _other_weights(run: RunDir, settings: EvaluationConfig) -> EvaluationConfig:
    with open(run.checkpoint(25) / "config.json", "a", encoding="utf-8") as handle:
        handle.write("\n")
    seal(run.checkpoint(25), 25)
    return settings


def _setting(**update: Any) -> Callable[[RunDir, EvaluationConfig], EvaluationConfig]:
    return lambda run, settings: settings.model_copy(update=update)


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (_other_weights, True),
        (_setting(seed=7), True),
        (_setting(samples=2), True),
        (_setting(temperature=0.7), True),
        (_setting(max_new_tokens=5), True),
        (_setting(batch_size=7), False),  # decides the speed only
    ],
)
def test_results_are_kept_only_while_they_answer(
    run: RunDir,
    settings: EvaluationConfig,
    change: Callable[[RunDir, EvaluationConfig], EvaluationConfig],
    anew: bool,
) -> None:
    output = run.evaluation(25, "micro_maths")

    def ensure(current: EvaluationConfig) -> tuple[Results, bool]:
        return ensure_results(run.checkpoint(25), prepare(current), output)

    _, made = ensure(settings)
    assert made and not ensure(settings)[1]
    changed = change(run, settings)
    results, made = ensure(changed)
    assert made == anew and not ensure(changed)[1]
    after = pd.read_parquet(output / "samples.parquet")
    assert results.k == changed.samples == after["sample"].nunique()


def test_a_changed_test_file_is_read_anew(
    run: RunDir, settings: EvaluationConfig, other_problems: Path
) -> None:
    output = run.evaluation(25, "micro_maths")
    ensure_results(run.checkpoint(25), prepare(settings), output)
    shutil.copyfile(other_problems, settings.data)  # same path, same ids
    results, made = ensure_results(run.checkpoint(25), prepare(settings), output)
    lines = [json.loads(line) for line in other_problems.read_text().splitlines()]
    frame = pd.read_parquet(output / "samples.parquet").drop_duplicates("question_id")
    assert made and list(frame["gold"]) == [line["answer"] for line in lines]
    assert list(frame["prompt"]) == [line["prompt"][0]["content"] for line in lines]
    assert results.dataset.digest == hashlib.sha256(other_problems.read_bytes()).hexdigest()


def test_a_bare_folder_is_named_by_its_content(
    tmp_path: Path, checkpoint: Path, settings: EvaluationConfig
) -> None:
    bare = tmp_path / "download"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("COMPLETE"))
    (tmp_path / "evaluation.json").write_text(f"[{settings.model_dump_json()}]")
    command = ["--checkpoint", str(bare), "--config", str(tmp_path / "evaluation.json")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out" / "micro_maths")
    assert results and results.checkpoint_step == 0
    # The trainer's digest of the same weights: one model, one name.
    assert results.checkpoint_digest == json.loads((checkpoint / "COMPLETE").read_text())["digest"]


def failure(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main([str(part) for part in command]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_bad_input_ends_with_2_and_one_line(
    run: RunDir, tmp_path: Path, settings: EvaluationConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no config.json" in failure(capsys, tmp_path / "absent")
    assert "at step 30, 75" in failure(capsys, run.path, "--steps", "30,25,75")
    bare = ("--output", tmp_path / "out", "--config", tmp_path / "e.json", "--checkpoint")
    assert "no list of evaluation settings" in failure(capsys, *bare, run.checkpoint(25))
    (tmp_path / "e.json").write_text(f"[{settings.model_dump_json()}]")
    assert "no checkpoint at" in failure(capsys, *bare, tmp_path)
    empty = tmp_path / "empty"
    shutil.copytree(run.checkpoint(25), empty, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "is damaged: model.safetensors is missing" in failure(capsys, *bare, empty)
    (empty / "COMPLETE").unlink()  # then it is a folder like any other
    assert "cannot be loaded" in failure(capsys, *bare, empty)
    (run.checkpoint(50) / "COMPLETE").write_text("{")
    assert "COMPLETE is damaged" in failure(capsys, *bare, run.checkpoint(50))
    with open(settings.data, "a", encoding="utf-8") as handle:
        handle.write('{"id": ')
    assert "line 13 is not JSON" in failure(capsys, run.path, "--steps", "25")
    os.unlink(settings.data)
    assert "no test problems" in failure(capsys, run.path, "--steps", "25")
    shutil.rmtree(run.checkpoints)
    assert "no complete checkpoint in" in failure(capsys, run.path)


@pytest.mark.parametrize(
    "argv", [[], ["RUN", "--checkpoint", "C"], ["--checkpoint", "C"], ["RUN", "--steps", "a"]]
)
def test_a_senseless_command_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_senseless_settings_are_refused(settings: EvaluationConfig) -> None:
    with pytest.raises(ConfigError, match="greedy"):
        prepare(settings.model_copy(update={"temperature": 0.0}))
    with pytest.raises(ConfigError, match="did you mean 'micro_maths'"):
        prepare(settings.model_copy(update={"benchmark": "micro_math"}))
    with pytest.raises(ConfigError, match="micro_maths has no data here"):
        prepare(settings.model_copy(update={"data": ""}))
    with pytest.raises(ConfigError, match="has no rule 'legacy'"):
        prepare(settings.model_copy(update={"rule": "legacy"}))
    with pytest.raises(ConfigError, match="go together"):
        prepare(settings.model_copy(update={"engine": "server"}))


def test_the_command_is_quiet_and_leaves_the_home_alone(run: RunDir, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "XDG_", "TRANSFORMERS_", "TQDM_"))
    }
    command = [sys.executable, "-m", "evals.run", str(run.path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize(
    "module", ["evals", "evals.stats", "evals.scaling", "evals.results", "evals.grading"]
)
def test_readers_and_graders_need_no_torch(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'lm_eval', 'datasets', 'prefect', 'mlflow'):\n"
        "    sys.modules[name] = None\n"
        f"import {module}, evals.run\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
