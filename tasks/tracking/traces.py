"""A few dialogues of every checkpoint as MLflow traces: a span a turn, a span a tool call.

Rollouts say in what order things happened and not when: spans follow one another by a microsecond
from the time of the rollouts' step. Ids are made from what a dialogue is (the run's identity, the
attempt, the step, the place in the file), so a trace that is sent twice is one trace. The calls are
those of mlflow 3.17's own exporter, `mlflow/tracing/export/mlflow_v3.py`, which swallows failures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reopold.run_dir import Record, RunDir, read_lines

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Span

#: Dialogues of one checkpoint; characters of a message.
DIALOGUES, CHARS = 4, 4_000
_OUTCOMES = {1.0: "right", 0.0: "wrong"}


@dataclass(frozen=True)
class Episodes:
    """The dialogues kept with one checkpoint that are sent, and the SHA-256 of their file."""

    step: int
    content: str
    dialogues: list[Record]
    time: float
    """Of the step, Unix seconds."""


@dataclass(frozen=True)
class Origin:
    """What the dialogues come from."""

    experiment_id: str
    run_id: str
    identity: str
    """Of the run and its attempt."""
    tags: Mapping[str, str]


def episodes(run_dir: RunDir, times: Mapping[int, float]) -> list[Episodes]:
    """By step, of the complete checkpoints; `times` of steps (from 0), others are left out."""
    found = []
    for step in run_dir.passed_checkpoints():
        file = run_dir.rollouts_file(step)
        if step - 1 not in times or not file.exists():
            continue
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        dialogues = [record for record in read_lines(file) if record.get("dialogue")][:DIALOGUES]
        found.append(Episodes(step, content, dialogues, times[step - 1]))
    return found


def send_episodes(client: MlflowClient, origin: Origin, found: Episodes) -> int:
    """Send the dialogues, a trace each; returns how many.

    Raises:
        MlflowException: MLflow is away or refuses.
    """
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient

    tracing = TracingClient(client.tracking_uri)
    for place, record in enumerate(found.dialogues):
        key = f"{origin.identity}/{found.step}/{place}"
        trace_id = f"tr-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        spans = _spans(trace_id, record, int(found.time * 1e9))
        tracing.log_spans(origin.experiment_id, spans)
        first, last = record["dialogue"][0], record["dialogue"][-1]
        tracing.start_trace(
            TraceInfo(
                trace_id=trace_id,
                trace_location=TraceLocation.from_experiment_id(origin.experiment_id),
                request_time=int(found.time * 1000),
                state=TraceState.ERROR if record.get("error") else TraceState.OK,
                request_preview=_cut(record.get("prompt") or first["content"]),
                response_preview=_cut(last["content"]),
                execution_duration=0,
                trace_metadata={"mlflow.sourceRun": origin.run_id},
                tags={**origin.tags, **_tags(found.step, record)},
            )
        )
    return len(found.dialogues)


def _tags(step: int, record: Record) -> dict[str, str]:
    environment = str(record.get("environment") or "dialogue")
    return {
        "mlflow.traceName": f"{environment} at step {step}",
        "step": str(step),
        "environment": environment,
        "outcome": outcome(record),
        "finish_reason": str(record.get("finish_reason")),
        "calls": str(record.get("calls", 0)),
        "failed_calls": str(record.get("failed_calls", 0)),
    }


def outcome(record: Record) -> str:
    """`right`, `wrong`, a reward in between, `broken` (the environment), `unknown`."""
    reward = record.get("reward")
    if record.get("error"):
        return "broken"
    return "unknown" if reward is None else _OUTCOMES.get(float(reward), f"{float(reward):g}")


def _spans(trace_id: str, record: Record, start_ns: int) -> list[Span]:
    """The root first: prompt in, last message out; then each message as an answer to the one
    before it."""
    said, prompt = record["dialogue"], {"role": "user", "content": str(record.get("prompt", ""))}
    error, answer = str(record.get("error") or ""), {"answer": record.get("answer")}
    tool = str(record.get("environment") or "tool")
    ends = (start_ns, start_ns + 1_000 * (len(said) + 1))
    root = _span(trace_id, 0, "dialogue", "AGENT", ends, prompt, said[-1], error, answer)
    spans, before, turns = [root], prompt, 0
    for number, message in enumerate(said, 1):
        ends = (start_ns + 1_000 * number, start_ns + 1_000 * (number + 1))
        is_tool = message["role"] == "tool"
        turns += not is_tool
        name, kind = (tool, "TOOL") if is_tool else (f"turn {turns}", "LLM")
        facts = {"tokens": _count(message.get("tokens"))}
        spans.append(_span(trace_id, number, name, kind, ends, before, message, "", facts))
        before = message
    return spans


def _span(
    trace_id: str,
    number: int,
    name: str,
    kind: str,
    ends: tuple[int, int],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    error: str,
    facts: Mapping[str, Any],
) -> Span:
    """One span; number 0 is the root, the parent of all others."""
    from mlflow.entities import Span

    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": kind,
        "mlflow.spanInputs": _message(inputs),
        "mlflow.spanOutputs": _message(outputs),
        **facts,
    }
    return Span.from_dict(
        {
            "trace_id": trace_id,
            "span_id": _span_id(trace_id, number),
            "parent_span_id": _span_id(trace_id, 0) if number else None,
            "name": name,
            "start_time_unix_nano": ends[0],
            "end_time_unix_nano": ends[1],
            "status": {"code": "ERROR" if error else "OK", "message": error},
            "attributes": {key: json.dumps(value) for key, value in attributes.items()},
        }
    )


def _span_id(trace_id: str, number: int) -> str:
    return hashlib.sha256(f"{trace_id}/{number}".encode()).hexdigest()[:16]


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    return {"role": str(message["role"]), "content": _cut(message["content"])}


def _count(tokens: int | Sequence[Any] | None) -> int | None:
    return tokens if tokens is None or isinstance(tokens, int) else len(tokens)


def _cut(text: Any) -> str:
    """What can be sent: encodable, and of bounded length."""
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return whole if len(whole) <= CHARS else f"{whole[: CHARS - 1]}…"
