"""Evaluate one checkpoint folder on benchmarks, as a flow."""

from __future__ import annotations

from typing import Literal

from prefect import flow

from evals.results import Results
from reopold.config import EvaluationConfig
from tasks.alive import alive
from tasks.benchmark import evaluate_checkpoint
from tasks.launch import stopping_on_signals


@flow(name="evaluate", flow_run_name="{checkpoint}")
def evaluate(
    checkpoint: str,
    output: str,
    settings: list[EvaluationConfig],
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[Results]:
    """Sample, grade and score a Hugging Face folder; results are written to `output`/BENCHMARK."""
    with alive(output), stopping_on_signals():
        return evaluate_checkpoint(checkpoint, output, settings, dtype, device)
