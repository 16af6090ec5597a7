"""Published prompt sets: rows of their own schemas become lines that recipes read."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import app, main
from reopold.answers.judge import JUDGES
from reopold.config import ConfigError, DataConfig
from reopold.data.prompts import load_mix
from reopold.data.published import SOURCES, prepare_prompts
from tests.reopold.tiny_vision import noise_image

DEEPMATH = [
    {"question": "What is $1+1$?", "final_answer": "2", "difficulty": 1.0, "topic": "sums",
     "r1_solution_1": "two"},
    {"question": "What is $1+1$?", "final_answer": "2", "difficulty": 1.0, "topic": "sums",
     "r1_solution_1": "again"},
    {"question": "Evaluate $\\int_0^1 x\\,dx$.", "final_answer": "\\frac{1}{2}", "difficulty": 2.0,
     "topic": "calculus", "r1_solution_1": ""},
    {"question": "Prove it.", "final_answer": "", "difficulty": 9.0, "topic": "",
     "r1_solution_1": ""},
]  # fmt: skip
DAPO = [
    {
        "data_source": "math_dapo",
        "prompt": [{"content": 'Solve. Put it after "Answer:".', "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra_info": {"index": "a"},
    }
] * 3
SYSTEM = [{"content": "**Available Tools** ...", "role": "system"}]
CALLS = (
    "<think> I should. </think>\n<tool_call>\n"
    '{"name": "news", "parameters": {"page": "1"}}\n{"name": "clock", "parameters": {}}\n'
    "</tool_call>"
)
TOOLRL = [
    {
        "data_source": "rlla",
        "prompt": [*SYSTEM, {"content": f"<user> {text} </user>", "role": "user"}],
        "reward_model": {"ground_truth": gold, "style": "rule"},
    }
    for text, gold in (
        ("news?", CALLS),
        ("hello", "<think> .. </think>\n<response> Hi </response>"),
    )
]


def write(rows: list[dict[str, Any]], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_maths(tmp_path: Path) -> None:
    source = write(DEEPMATH, tmp_path / "data" / "train-00000-of-00001.parquet")
    prepared = prepare_prompts("deepmath", tmp_path / "out", tmp_path)
    assert (prepared.prompts, prepared.left_out) == (2, 2)  # one repeated, one without an answer
    mix = load_mix(DataConfig(train=prepared.path, reward="maths"), "maths", 0)
    first, second = mix.prompts
    assert first.messages[0]["content"] == (
        "What is $1+1$?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert JUDGES["maths"]([r"so \boxed{0.5}"], [second.answer]) == [1.0]
    again = prepare_prompts("deepmath", tmp_path / "again", source)
    assert again.sha256 == prepared.sha256
    assert json.loads((tmp_path / "out" / "source.json").read_text())["licence"] == "MIT"


def test_repeated_prompts_are_kept_once(tmp_path: Path) -> None:
    prepared = prepare_prompts("dapo_math", tmp_path / "out", write(DAPO, tmp_path / "a.parquet"))
    assert (prepared.prompts, prepared.left_out) == (1, 2)
    (prompt,) = load_mix(DataConfig(train=prepared.path, reward="maths"), "maths", 0).prompts
    assert JUDGES["maths"](["Answer: 34"], [prompt.answer]) == [1.0]


def test_pictures(tmp_path: Path) -> None:
    pictures = [noise_image(tmp_path / f"{i}.png", 20, 20, i).read_bytes() for i in (1, 2)]
    rows = [
        {
            "images": [{"bytes": picture, "path": None}],
            "problem": problem,
            "answer": "48",
        }
        for picture, problem in zip(pictures, ("<image>Find x.", "Find y."), strict=True)
    ] + [{"images": [], "problem": "Find z.", "answer": "1"}]
    file = write(rows, tmp_path / "train-0.parquet")
    prepared = prepare_prompts("geometry3k", tmp_path / "out", file)
    assert (prepared.prompts, prepared.left_out) == (2, 1)
    prompts = load_mix(DataConfig(train=prepared.path, reward="maths"), "visual", 0).prompts
    assert [Path(p.images[0].path).read_bytes() for p in prompts] == pictures
    assert all(p.messages[0]["content"].startswith("<image>Find") for p in prompts)


def test_tool_calls(tmp_path: Path) -> None:
    file = write(TOOLRL, tmp_path / "train.parquet")
    prepared = prepare_prompts("toolrl", tmp_path / "out", file)
    prompts = load_mix(DataConfig(train=prepared.path, reward="calls"), "tools", 0).prompts
    assert [m["role"] for m in prompts[0].messages] == ["system", "user"]
    answers = [prompt.answer for prompt in prompts]
    assert JUDGES["calls"]([CALLS, "Hi"], answers) == [1.0, 1.0]
    assert JUDGES["calls"](["Hi", CALLS], answers) == [0.0, 0.0]


def test_a_file_of_another_set_is_refused(tmp_path: Path) -> None:
    file = write(DAPO, tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=r"not of DeepMath-103K: it has no column question"):
        prepare_prompts("deepmath", tmp_path / "out", file)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ConfigError, match="no parquet file"):
        prepare_prompts("deepmath", tmp_path / "out", tmp_path / "text.parquet")
    with pytest.raises(ConfigError, match="name a parquet file or its folder"):
        prepare_prompts("deepmath", tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_set_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(TOOLRL, tmp_path / "served" / "8cee" / "train.parquet")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{{revision}}/train.parquet"
    placed = dataclasses.replace(SOURCES["toolrl"], url=url, revision="8cee")
    monkeypatch.setitem(SOURCES, "toolrl", placed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        prepared = prepare_prompts("toolrl", tmp_path / "out")
        assert (prepared.prompts, prepared.revision) == (2, "8cee")
    finally:
        server.shutdown()
        server.server_close()
    prepare_prompts("toolrl", tmp_path / "again")  # from the cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"cannot be read .* name them with --from"):
        prepare_prompts("toolrl", tmp_path / "never")


def test_the_command(
    tmp_path: Path,
    state_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from typer.testing import CliRunner

    listed = CliRunner().invoke(app, ["prompts"])
    assert "deepmath" in listed.output and "Geometry3K" in listed.output
    file = write(DEEPMATH, tmp_path / "a.parquet")
    done = CliRunner().invoke(app, ["prompts", "deepmath", "--from", str(file)])
    assert done.exit_code == 0 and "2 prompts (2 rows left out), MIT" in done.output
    assert (state_home / "prompts" / "deepmath" / "train.jsonl").is_file()
    monkeypatch.setattr("sys.argv", ["reopold", "prompts", "deepmaths"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no prompt set 'deepmaths'; choose one of deepmath" in capsys.readouterr().err
