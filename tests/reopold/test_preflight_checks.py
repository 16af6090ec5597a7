"""Each thing that would waste a GPU hour, put into a recipe and found."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reopold import preflight_probes
from reopold.config import (
    DataConfig,
    EngineConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    SamplingConfig,
    SourceTeacher,
    TeacherConfig,
    TrainConfig,
)
from reopold.engines.hf import load_model
from reopold.preflight import Check, checks
from reopold.rollouts import Rollout
from reopold.scoring import output_head, score

Recipe = Callable[..., RunConfig]


def find(config: RunConfig, name: str) -> Check:
    """The worst check of that name."""
    named = [check for check in checks(config) if check.name == name]
    assert named, [check.name for check in checks(config)]
    return max(named, key=lambda check: ("pass", "warn", "fail").index(check.status))


@pytest.fixture
def models(suite: Path, tmp_path: Path) -> ModelConfig:
    """Copies that a test may damage."""
    for role in ("student", "teacher"):
        shutil.copytree(suite / f"{role}-init", tmp_path / role)
    return ModelConfig(student=str(tmp_path / "student"), teacher=str(tmp_path / "teacher"))


def change_json(folder: str, name: str, **values: Any) -> None:
    file = Path(folder) / name
    there = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**there, **values}))


def test_a_good_recipe_passes_everything(recipe: Recipe) -> None:
    found = checks(recipe("reopold"))
    assert [c for c in found if c.status != "pass"] == []
    names = {c.name for c in found}
    assert names >= {
        *("batch", "sampling", "data", "length", "EOS", "tokenizers", "template", "vocabulary"),
        *("memory", "sampler", "reward 0", "run time"),
    }


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_methods_without_a_teacher_pass_too(recipe: Recipe, method: str) -> None:
    assert [c for c in checks(recipe(method)) if c.status != "pass"] == []


def test_tokenizers_and_eos(recipe: Recipe, models: ModelConfig) -> None:
    change_json(models.student, "generation_config.json", eos_token_id=[1, 3])
    assert find(recipe(model=models), "EOS").status == "warn"
    change_json(models.student, "generation_config.json", eos_token_id=3)
    check = find(recipe(model=models), "EOS")
    assert check.status == "fail" and "[3]" in check.found and check.mend
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.teacher)
    tokenizer.add_tokens(["x"])
    tokenizer.save_pretrained(models.teacher)
    assert find(recipe(model=models), "tokenizers").status == "fail"


def test_a_teacher_of_another_template_is_a_warning(recipe: Recipe, models: ModelConfig) -> None:
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        path = Path(models.teacher) / file
        if path.exists():
            path.write_text(path.read_text().replace("<|{{ message['role'] }}|>", ""))
    check = find(recipe(model=models), "template")
    assert check.status == "warn" and "50 of 50" in check.found


def test_rows_of_the_head_against_real_ids(recipe: Recipe, models: ModelConfig) -> None:
    assert models.teacher
    model = load_model(models.teacher, dtype="float32", device="cpu")
    model.resize_token_embeddings(32)
    model.save_pretrained(models.teacher)
    check = find(recipe(model=models), "vocabulary")
    assert check.status == "pass"
    foreign = TeacherConfig(kind="server", urls=["http://127.0.0.1:9"], retries=0)
    assert find(recipe(model=models, teacher=foreign), "vocabulary").status == "warn"
    model.resize_token_embeddings(12)
    model.save_pretrained(models.teacher)
    assert find(recipe(model=models), "vocabulary").status == "fail"


def test_sampling_and_batch_arithmetic(recipe: Recipe) -> None:
    cool = SamplingConfig(prompts_per_step=3, rollouts_per_prompt=2, temperature=0.7)
    assert find(recipe(sampling=cool), "sampling").status == "warn"
    same = ObjectiveConfig(logprob_temperature=0.7)
    assert find(recipe(sampling=cool, objective=same), "sampling").status == "pass"
    uneven = TrainConfig(steps=2, updates_per_step=2)
    assert find(recipe(train=uneven), "batch").status == "warn"


def test_data_its_answers_length_and_sources(recipe: Recipe, suite: Path, tmp_path: Path) -> None:
    lines = [
        json.loads(x) for x in (suite / "micro_maths" / "train.jsonl").read_text().splitlines()
    ]
    lines[0]["answer"] = ""
    lines[2]["id"] = lines[1]["id"]
    lines[3]["source"] = "sums"
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    data = DataConfig(train=str(file))
    assert find(recipe(data=data), "answers").status == "warn"
    assert find(recipe(data=data), "data").status == "warn"
    long = SamplingConfig(prompts_per_step=3, rollouts_per_prompt=2, max_new_tokens=500)
    assert find(recipe(sampling=long), "length").status == "fail"
    served = EngineConfig(kind="vllm", max_length=20)
    assert find(recipe(engine=served), "length").status == "fail"
    teacher = str(suite / "teacher-init")
    known = [SourceTeacher(sources=["sums"], model=teacher)]
    assert find(recipe(data=data, teachers=known), "sources").status == "pass"
    unknown = [SourceTeacher(sources=["sum"], model=teacher)]
    assert find(recipe(data=data, teachers=unknown), "sources").status == "fail"


def test_memory_that_is_not_there(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    check = find(recipe(), "memory")
    needed = float(check.found.split()[1])
    for available, status in ((needed * 0.9, "fail"), (needed * 1.05, "warn"), (1e6, "pass")):
        monkeypatch.setattr(
            preflight_probes, "_available", lambda _, size=available: int(size * 2**20)
        )
        assert find(recipe(), "memory").status == status


def test_a_model_too_large_to_load_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_probes, "PROBE_BYTES", {"cpu": 10})
    assert find(recipe(), "probe").status == "warn"


def test_vllm_that_is_not_there(recipe: Recipe, tmp_path: Path) -> None:
    engine = EngineConfig(kind="server", python=str(tmp_path / "no-python"))
    check = find(recipe(engine=engine), "engine: vLLM")
    assert check.status == "fail" and "no-python" in check.found


def test_a_teacher_that_scores_as_the_student_does_not_is_found(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student in the teacher's place at another temperature."""
    real = preflight_probes.load_local

    def warm(*arguments: Any) -> Any:
        import dataclasses

        return dataclasses.replace(real(*arguments), temperature=1.5)

    monkeypatch.setattr(preflight_probes, "load_local", warm)
    assert find(recipe(), "reward 0").status == "fail"


class Scorer(BaseHTTPRequestHandler):
    """A server with the prompt_logprobs of a real model, and a fault that a test chooses."""

    model: Any
    temperature = 1.0
    logits = False
    drift = 0.0
    most = 20

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "teacher"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt_logprobs"] > self.most:
            return self.answer(400, {"error": {"message": "greater than max allowed"}})
        ids = body["prompt"]
        head = output_head(self.model, None, self.temperature)
        rollout = Rollout(ids[:1], ids[1:], [], "length")
        values = score(self.model, [rollout], head=head, micro_batch=1).logprobs_N
        type(self).seen = getattr(self, "seen", 0) + 1
        shift = self.drift * self.seen + (20.0 if self.logits else 0.0)
        rows: list[Any] = [None]
        for token, value in zip(ids[1:], values.tolist(), strict=True):
            others = {i: -9.0 - i for i in range(body["prompt_logprobs"])}
            row = {**others, token: value + shift}
            rows.append({str(i): {"logprob": x} for i, x in row.items()})
        return self.answer(200, {"choices": [{"index": 0, "prompt_logprobs": rows}]})

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def served(suite: Path) -> Iterator[Callable[..., TeacherConfig]]:
    servers = []

    def start(**faults: Any) -> TeacherConfig:
        model = load_model(str(suite / "teacher-init"), dtype="float32", device="cpu")
        handler = type("Faulty", (Scorer,), {"model": model, **faults})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}"
        return TeacherConfig(
            kind="server", urls=[url], retries=0, timeout_seconds=20, concurrency=1
        )

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_right_teacher_server_passes(
    recipe: Recipe, served: Callable[..., TeacherConfig]
) -> None:
    found = [c for c in checks(recipe(teacher=served())) if c.name.startswith(("teach", "repeat"))]
    assert [(c.name, c.status) for c in found] == [
        ("teacher", "pass"),
        ("repeatable", "pass"),
        ("teacher weights", "pass"),
    ]


@pytest.mark.parametrize(
    ("faults", "name"),
    [
        ({"temperature": 0.5}, "teacher weights"),
        ({"logits": True}, "teacher"),
        ({"drift": -0.01}, "repeatable"),
        ({"most": -1}, "teacher"),
        ({"drift": -math.inf}, "teacher"),
    ],
)
def test_a_teacher_server_with_a_fault_fails(
    recipe: Recipe, served: Callable[..., TeacherConfig], faults: dict[str, Any], name: str
) -> None:
    check = find(recipe(teacher=served(**faults)), name)
    assert check.status == "fail" and check.mend


def test_too_few_log_probs_a_position(recipe: Recipe, served: Callable[..., TeacherConfig]) -> None:
    objective = ObjectiveConfig(support="top_k", top_k=30)
    config = recipe("gkd", teacher=served(), objective=objective)
    check = find(config, "teacher")
    assert check.status == "fail" and "--max-logprobs 30" in check.mend


def test_a_teacher_server_that_is_away(recipe: Recipe) -> None:
    away = TeacherConfig(kind="server", urls=["http://127.0.0.1:9"], retries=0)
    assert find(recipe(teacher=away), "teacher").status == "fail"
