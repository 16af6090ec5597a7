"""The command line: bad input ends with code 2 and one clear message, before any work starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

PROGRAM = Path(sys.executable).with_name("reopold")

RECIPE = """
name: opd-s7
method: opd
model: {{student: {suite}/student-init, teacher: {suite}/teacher-init}}
data: {{train: {suite}/micro_maths/train.jsonl}}
evaluation: {{data: {suite}/micro_maths/test.jsonl}}
"""


def reopold(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    environment.setdefault("REOPOLD_HOME", str(cwd / "state"))
    return subprocess.run(
        [str(PROGRAM), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stesp=5", "unknown key 'train.stesp': did you mean 'steps'?"),
        ("train.steps=0", "'train.steps': Input should be greater than or equal to 1"),
        ("sampling.temperature=warm", "'sampling.temperature'"),
        ("methods=[reopold,ppo]", "'methods.1'"),
        ("objective={lam: 0.7, floor: odds}", "needs lam < 0.5"),
        ("name=../../etc", "'name'"),
        ("train.steps", "write it as key=value"),
        ("sampling.rollouts_per_prompt=1", "at least 2"),
        ("seeds=[-1]", "'seeds.0'"),
        ("evaluation.benchmark=nosuch", "nosuch"),
        ("evaluation.temperature=0", "greedy"),
        ("evaluation.data=./mine.jsonl", "not for a study to set"),
        ("optimizer.lr=.inf", "'optimizer.lr'"),
    ],
)
def test_a_faulty_study(override: str, message: str, tmp_path: Path) -> None:
    refused(reopold("quickstart", "--set", override, cwd=tmp_path), message)
    assert not (tmp_path / "state").exists()


def test_a_missing_study_file(tmp_path: Path) -> None:
    refused(reopold("study", "none.yaml", cwd=tmp_path), "no recipe at none.yaml")


def test_a_family_that_there_is_not(tmp_path: Path) -> None:
    message = "no family 'music'; choose one of maths, visual, tools, all"
    refused(reopold("quickstart", "--family", "music", cwd=tmp_path), message)


@pytest.mark.parametrize("family", ["all"])
def test_each_family_has_a_study_folder_of_its_own(family: str, tmp_path: Path) -> None:
    study = tmp_path / "state" / "studies" / f"quickstart-{family}"
    study.mkdir(parents=True)
    (study / "study.json").write_text("{}")
    done = reopold("quickstart", "--family", family, cwd=tmp_path)
    refused(done, f"quickstart-{family} belongs to another config")


#: What the make that runs these tests tells the makes below it, and these tests must not be told.
MAKES_OWN = ("ARGS", "FAMILY", "MAKEFLAGS", "MAKEOVERRIDES")


@pytest.mark.parametrize(
    ("arguments", "family"), [([], "maths"), (["FAMILY=visual"], "visual"), (["FAMILY=all"], "all")]
)
def test_make_hands_the_family_on(arguments: list[str], family: str) -> None:
    mine = {key: value for key, value in os.environ.items() if key not in MAKES_OWN}
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "quickstart", *arguments],
        cwd=REPO,
        env=mine,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split()[-2:] == ["--family", family]


def test_a_study_folder_of_another_config(tmp_path: Path) -> None:
    study = tmp_path / "state" / "studies" / "quickstart"
    study.mkdir(parents=True)
    (study / "study.json").write_text("{}")
    refused(reopold("quickstart", cwd=tmp_path), "belongs to another config")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.student=./none"], "no student checkpoint at"),
        (["--set", "data.train=./none.jsonl"], "no prompts at"),
        (["--set", "method=sfx"], "'method'"),
        (["--set", "train.steps=4000000", "--set", "train.checkpoint_every=1"], "no disk space"),
        (["--output", "taken"], "is not empty"),
    ],
)
def test_a_faulty_run(arguments: list[str], message: str, tmp_path: Path, suite: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(suite=suite))
    refused(reopold("distill", "recipe.yaml", *arguments, cwd=tmp_path), message)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_a_checkpoint_that_is_not_there(tmp_path: Path, suite: Path) -> None:
    data = str(suite / "micro_maths" / "test.jsonl")
    refused(reopold("evaluate", "none", "--data", data, cwd=tmp_path), "no checkpoint at none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a CHECKPOINT folder"),
        (["none", "-b", "micro_math"], "did you mean 'micro_maths'"),
        (["none", "--engine", "trtllm"], "--engine is hf, vllm or a URL"),
        (["none", "-b", "aime25"], "aime25"),
    ],
)
def test_a_senseless_evaluation(arguments: list[str], message: str, tmp_path: Path) -> None:
    refused(reopold("evaluate", *arguments, cwd=tmp_path), message)


def test_the_benchmarks_are_listed(tmp_path: Path) -> None:
    done = reopold("evaluate", "--list", "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["aime25"]["items"] == [30] and rows["wemath"]["family"] == "visual"
    assert {row["family"] for row in rows.values()} == {"maths", "visual", "tools", "code"}
    assert "aime25" in reopold("evaluate", "--list", cwd=tmp_path).stdout


def test_saved_outputs_are_graded(tmp_path: Path) -> None:
    record = {"problem": "1+1", "answer": "\\frac{1}{2}", "unique_id": "a"}
    line = {"record": record, "responses": ["so $\\boxed{0.5}$", "\\boxed{2}", "<think>hm"]}
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(line) + "\n")
    done = reopold("grade", "math500", "r.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["statuses"] == {"no_answer": 1, "ok": 1, "wrong": 1}
    (graded,) = map(json.loads, (tmp_path / "r.graded.jsonl").read_text().splitlines())
    assert [v["correct"] for v in graded["verdicts"]] == [True, False, False]
    assert "avg@3" in reopold("grade", "math500", "r.jsonl", cwd=tmp_path).stdout
    refused(reopold("grade", "math500", "r.jsonl", "--rule", "no", cwd=tmp_path), "has no rule")
    file.write_text("{")
    refused(reopold("grade", "math500", "r.jsonl", cwd=tmp_path), "line 1: is not JSON")


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_study_that_is_not_there(command: str, tmp_path: Path) -> None:
    refused(reopold(command, "none", cwd=tmp_path), "none")


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        refused(reopold("dashboard", "--mlflow-port", port, cwd=tmp_path), port)


@pytest.mark.integration
@pytest.mark.slow
def test_preflight_says_what_is_wrong_and_distil_does_not_start(
    tmp_path: Path, suite: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(suite=suite))
    good = reopold("preflight", str(recipe), cwd=tmp_path)
    assert good.returncode == 0 and "reward 0" in good.stderr and "fail" not in good.stderr
    rows = json.loads(reopold("preflight", str(recipe), "--json", cwd=tmp_path).stdout)
    assert {row["status"] for row in rows} == {"pass"}
    away = ["--set", "teacher.kind=server", "--set", "teacher.urls=[http://127.0.0.1:9]"]
    away += ["--set", "teacher.retries=0"]
    bad = reopold("preflight", str(recipe), *away, cwd=tmp_path)
    assert bad.returncode == 1 and "1 of" in bad.stderr and "checks failed" in bad.stderr
    stopped = reopold("distill", str(recipe), "-o", "run", *away, cwd=tmp_path)
    assert stopped.returncode == 1 and "nothing was started" in stopped.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_distil_and_evaluate_for_real(tmp_path: Path, suite: Path) -> None:
    """A whole run through Prefect, trainer, lm-eval and MLflow; then its checkpoint on its own."""
    (tmp_path / "suite").symlink_to(suite)  # paths as people write them
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(suite="./suite"))
    small = ["sampling={prompts_per_step: 2, rollouts_per_prompt: 2, max_new_tokens: 8}"]
    small += ["train={steps: 2, checkpoint_every: 1}", "evaluation.samples=2"]
    small += ["evaluation.max_new_tokens=8"]
    sets = [part for key in small for part in ("--set", key)]
    home = tmp_path / "home"
    home.mkdir()
    done = reopold("distill", "recipe.yaml", *sets, "--json", cwd=tmp_path, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    run = tmp_path / result["run_dir"]
    assert (tmp_path / result["checkpoint"] / "COMPLETE").exists()
    for step in (1, 2):
        scores = json.loads((run / f"eval/step-{step:06d}/micro_maths/results.json").read_text())
        assert [s["metric"] for s in scores["scores"]] == ["avg@k", "pass@k", "maj@k"]
    assert json.loads((run / "tracking.json").read_text())
    assert list(home.iterdir()) == [], "something was written to the user's home"

    arguments = [
        "--data",
        str(suite / "micro_maths" / "test.jsonl"),
        "--samples",
        "2",
        "--max-new-tokens",
        "8",
    ]
    done = reopold("evaluate", result["checkpoint"], *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["results"]
    assert (found["n"], found["k"], found["metric"]) == (20, 2, "avg@k")
    folders = list((tmp_path / "state/evaluations").glob("*/micro_maths"))
    assert {"results.json", "samples.parquet"} <= {file.name for file in folders[0].iterdir()}


def test_the_repository_names_no_machine() -> None:
    """No absolute machine paths in what is committed."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = REPO / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".json", ".html"):
            assert "/work/" + "main" not in path.read_text(encoding="utf-8"), name
