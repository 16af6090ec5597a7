"""Dialogues with tools as MLflow traces: what arrives, and that it arrives once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks import home
from tasks.tracking import TrackingUnavailable, ship_run, state, waiting_run
from tasks.tracking.traces import CHARS, DIALOGUES, outcome
from tests.tasks.tracking_server import Network, Server

if TYPE_CHECKING:
    from mlflow.entities import Trace

MakeRun = Callable[..., Any]


def dialogue(number: int, **fields: Any) -> dict[str, Any]:
    call = f'<tool_call>{{"expression": "{number}*2"}}</tool_call>'
    return {
        "prompt": f"twice {number}?",
        "response": "",
        "answer": str(2 * number),
        "reward": 1.0,
        "finish_reason": "stop",
        "tokens": [],
        "environment": "calculator",
        "calls": 1,
        "failed_calls": 0,
        "error": "",
        "dialogue": [
            {"role": "assistant", "content": call, "tokens": 9},
            {"role": "tool", "content": str(2 * number), "tokens": 3},
            {"role": "assistant", "content": f"#{2 * number}", "tokens": 2},
        ],
        **fields,
    }


def keep(run: Any, step: int, records: list[dict[str, Any]]) -> None:
    file = run.dir.rollouts_file(step)
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")


def trained(run: Any, *steps: int) -> None:
    """A run with a checkpoint and two dialogues at each of these steps, and a plain rollout."""
    run.status("running")
    for before, step in zip((0, *steps), steps, strict=False):
        run.train(before, step)
        plain = {**dialogue(step), "dialogue": None, "environment": ""}
        keep(run, step, [plain, dialogue(step), dialogue(step + 1, reward=0.0)])
        run.checkpoint(step)


def traces(run_id: str) -> list[Trace]:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_traces(locations=[experiment], run_id=run_id, order_by=["timestamp_ms"])
    return list(found)


def test_a_dialogue_is_a_trace_with_a_span_a_turn(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    trained(run, 5)
    report = ship_run(run.path)

    assert report.dialogues_sent == 2
    right, wrong = sorted(traces(report.run_id), key=lambda trace: trace.info.tags["outcome"])
    assert (right.info.tags["outcome"], wrong.info.tags["outcome"]) == ("right", "wrong")
    assert right.info.trace_metadata["mlflow.sourceRun"] == report.run_id
    tags = {"run": "reopold-s1", "method": "reopold", "step": "5", "calls": "1", "study": "micro"}
    assert tags.items() <= right.info.tags.items()
    assert right.info.tags["mlflow.traceName"] == "calculator at step 5"
    time = run.dir.metrics()[4]["time"]
    assert right.info.timestamp_ms == int(time * 1000)
    root, *turns = sorted(right.data.spans, key=lambda span: (span.start_time_ns, span.name))
    assert root.parent_id is None and {span.parent_id for span in turns} == {root.span_id}
    assert [(span.name, span.span_type) for span in [root, *turns]] == [
        ("dialogue", "AGENT"),
        ("turn 1", "LLM"),
        ("calculator", "TOOL"),
        ("turn 2", "LLM"),
    ]
    assert root.inputs == {"role": "user", "content": "twice 5?"}
    assert root.outputs == {"role": "assistant", "content": "#10"}
    assert root.attributes["answer"] == "10"
    call, tool, last = turns
    assert call.inputs == root.inputs and "5*2" in call.outputs["content"]
    assert tool.inputs == call.outputs and tool.outputs == {"role": "tool", "content": "10"}
    assert last.inputs == tool.outputs and last.attributes["tokens"] == 2


def test_every_dialogue_is_sent_once(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    trained(run, 5)
    first = ship_run(run.path)
    assert ship_run(run.path).dialogues_sent == 0
    run.train(5, 10)
    keep(run, 10, [dialogue(number) for number in range(DIALOGUES + 3)])
    assert ship_run(run.path).dialogues_sent == 0  # the checkpoint is not complete
    run.checkpoint(10)
    waits = waiting_run(run.path)
    assert waits is not None and waits.dialogues == DIALOGUES
    assert f"{DIALOGUES} dialogues" in str(waits)
    assert ship_run(run.path).dialogues_sent == DIALOGUES
    (run.path / "tracking.json").unlink()  # the cursor is lost: sent again, they are the same
    assert ship_run(run.path).dialogues_sent == DIALOGUES + 2
    assert len(traces(first.run_id)) == DIALOGUES + 2
    assert all(len(trace.data.spans) == 4 for trace in traces(first.run_id))


def test_a_crash_between_sending_and_noting_it(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    trained(run, 5)
    save = state.Cursor.save

    def crash(cursor: state.Cursor, **fields: Any) -> None:
        if "traces" in fields:
            raise KeyboardInterrupt
        save(cursor, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(state.Cursor, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            ship_run(run.path)
    report = ship_run(run.path)
    assert (report.dialogues_sent, len(traces(report.run_id))) == (2, 2)


def test_rollouts_of_text_send_nothing(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 10)
    for step, text in ((5, '{"prompt": "1+1", "tokens": []}\n'), (10, "no json\n{}\n")):
        file = run.dir.rollouts_file(step)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        run.checkpoint(step)
    report = ship_run(run.path)
    assert (report.dialogues_sent, traces(report.run_id)) == (0, [])


def test_what_went_wrong_is_said(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 5)
    long = [{"role": "assistant", "content": "x" * (2 * CHARS) + "\ud800", "tokens": [1, 2, 3]}]
    keep(run, 5, [dialogue(1, error="the tool broke", reward=None), dialogue(2, dialogue=long)])
    run.checkpoint(5)
    report = ship_run(run.path)
    found = {trace.info.tags["outcome"]: trace for trace in traces(report.run_id)}
    assert found["broken"].info.state.value == "ERROR"
    (root,) = (span for span in found["broken"].data.spans if span.parent_id is None)
    assert root.status.description == "the tool broke"
    cut = next(span for span in found["right"].data.spans if span.name == "turn 1")
    assert len(cut.outputs["content"]) == CHARS and cut.attributes["tokens"] == 3


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"reward": 1.0}, "right"),
        ({"reward": 0}, "wrong"),
        ({"reward": 0.25}, "0.25"),
        ({"reward": None}, "unknown"),
        ({"reward": 1.0, "error": "no"}, "broken"),
    ],
)
def test_outcomes(record: dict[str, Any], said: str) -> None:
    assert outcome(record) == said


def test_a_rolled_back_dialogue_belongs_to_its_attempt(
    tracked_home: Path, make_run: MakeRun
) -> None:
    from reopold.changes import Change

    run = make_run()
    trained(run, 5, 10)
    first = ship_run(run.path)
    run.clock += 1.0
    run.dir.add_change(Change(run.clock, 5, "health", "entropy_collapse", {"seed": [1, 2]}))
    run.status("running", 5)
    run.dir.cut_back(5)
    second = ship_run(run.path)
    assert first.run_id != second.run_id
    assert (len(traces(first.run_id)), len(traces(second.run_id))) == (4, 2)


@pytest.mark.slow
def test_a_server_that_goes_away_gets_them_later(
    fresh_home: Path,
    make_run: MakeRun,
    empty_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = tmp_path / "server.db"
    database.write_bytes(empty_database.read_bytes())
    server = Server(f"sqlite:///{database}", tmp_path)
    server.start()
    network = Network(server.port, marker=b"/v1/traces")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", network.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    home.configure_mlflow()
    try:
        run = make_run()
        trained(run, 5)
        network.fault = "answer 500"
        with pytest.raises(TrackingUnavailable):
            ship_run(run.path)
        waits = waiting_run(run.path)
        assert network.hit and waits is not None
        assert (waits.steps, waits.dialogues) == (0, 2)  # the numbers came first
        network.fault = "lose answer"
        with pytest.raises(TrackingUnavailable):
            ship_run(run.path)
        network.fault = "none"
        report = ship_run(run.path)
        assert report.dialogues_sent == 2 and waiting_run(run.path) is None
        assert [len(trace.data.spans) for trace in traces(report.run_id)] == [4, 4]
    finally:
        network.close()
        server.kill()
