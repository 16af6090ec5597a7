"""Two evaluations side by side, from the files of real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.contrast import contrast
from evals.evaluation import evaluate_checkpoint
from evals.results import read_results
from evals.run import write_curves
from reopold.config import ConfigError, EvaluationConfig


@pytest.fixture
def evaluations(tmp_path: Path, checkpoint: Path, settings: EvaluationConfig) -> tuple[Path, Path]:
    """The same model with two seeds: there is nothing to find."""
    for name, seed in (("student", 1), ("teacher", 2)):
        changed = settings.model_copy(update={"seed": seed})
        evaluate_checkpoint(checkpoint, changed, tmp_path / name / "micro_maths")
    return tmp_path / "student", tmp_path / "teacher"


def test_a_comparison_and_a_speed_up(evaluations: tuple[Path, Path]) -> None:
    found = contrast(*evaluations)
    (comparison,) = found.comparisons
    scores = [
        results.score("avg@k").value
        for folder in evaluations
        if (results := read_results(folder / "micro_maths"))
    ]
    assert comparison.scores == pytest.approx(scores)
    assert comparison.difference.low <= 0 <= comparison.difference.high
    assert comparison.outcome == "undecided" and comparison.questions == 12
    text = found.as_text()
    assert "student scores" in text and "micro_maths: The teacher scores" in text


def test_what_cannot_be_compared_is_refused(
    evaluations: tuple[Path, Path],
    tmp_path: Path,
    checkpoint: Path,
    settings: EvaluationConfig,
    other_problems: Path,
) -> None:
    with pytest.raises(ConfigError, match="share no benchmark"):
        contrast(evaluations[0], tmp_path / "nowhere")
    other = settings.model_copy(update={"data": str(other_problems)})
    evaluate_checkpoint(checkpoint, other, tmp_path / "other" / "micro_maths")
    with pytest.raises(ConfigError, match=r"differ in dataset\.digest"):
        contrast(evaluations[0], tmp_path / "other")


def test_the_curves_are_written(evaluations: tuple[Path, Path]) -> None:
    import pandas as pd

    folder = evaluations[0] / "micro_maths"
    results = read_results(folder)
    assert results and results.parameters > 1000
    write_curves(folder, results)
    curve = pd.read_csv(folder / "scaling.csv")
    last = curve[(curve["metric"] == "pass@k") & (curve["k"] == 3)]["value"].item()
    assert last == pytest.approx(results.score("pass@k").value)
    assert (curve["tokens"] > 0).all() and (curve["flops"] > 0).all()
    assert (folder / "scaling.svg").read_text().startswith("<?xml")


def test_a_budget_of_thought_is_kept_to(
    tmp_path: Path, checkpoint: Path, settings: EvaluationConfig
) -> None:
    """A tiny model whose tokenizer knows thoughts; the micro suite's knows none."""
    import pandas as pd

    from reopold.micro.models import build_model, save_model
    from reopold.micro.tokenizer import build_tokenizer

    forced = settings.model_copy(update={"thinking_tokens": 7, "ignore_end": 1})
    with pytest.raises(ConfigError, match="does not know </think>"):
        evaluate_checkpoint(checkpoint, forced, tmp_path / "out")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["</think>", "Wait", "Final Answer:", "\n"])
    save_model(build_model(tokenizer, width=32, layers=1, seed=5), tokenizer, tmp_path / "thinker")
    results = evaluate_checkpoint(tmp_path / "thinker", forced, tmp_path / "out")
    assert results.generation.thinking_tokens == 7
    frame = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert frame["response"].str.contains("</think>").all()
    assert (frame["tokens"] <= 7 + settings.max_new_tokens).all()
    assert frame["response"].str.contains("Final Answer:").any()
