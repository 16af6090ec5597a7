"""Logged models ranked on a benchmark: MLflow's store does it, and its page of models does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from tasks import tracking_records as records
from tasks.tracking.client import reaching
from tasks.tracking_records import BestCheckpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

Ranked = tuple["LoggedModel", dict[str, float]]
#: Rows of the table on the study's page.
SHOWN = 20


def best_checkpoint(
    study: str,
    benchmark: str,
    metric: str = "avg@4",
    *,
    arms: Sequence[str] = (),
    step: int | None = None,
) -> BestCheckpoint | None:
    """The study's best evaluated checkpoint; None if there is none.

    Args:
        arms: among these; none: all but the runs that every arm starts from or learns from.
        step: among checkpoints after so many completed steps.

    Raises:
        TrackingUnavailable: MLflow is away or refuses.
    """
    with reaching() as client:
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            return None
        return best(client, experiment.experiment_id, benchmark, metric, arms, step)


def best(
    client: MlflowClient,
    experiment_id: str,
    benchmark: str,
    metric: str,
    arms: Sequence[str],
    step: int | None,
) -> BestCheckpoint | None:
    """As :func:`best_checkpoint`, of an experiment."""
    name = records.score_name(benchmark, metric)
    for model, scores in ranked(client, experiment_id, benchmark, name):
        if _is_among(model, arms, step):
            score = {
                "model_id": model.model_id,
                "value": scores[name],
                "low": scores.get(f"{name}_low"),
                "high": scores.get(f"{name}_high"),
            }
            return BestCheckpoint.model_validate({**model.tags, **model.params, **score})
    return None


def ranked(client: MlflowClient, experiment_id: str, benchmark: str, name: str) -> Iterator[Ranked]:
    """Models that have the score, the best first, each with its scores by metric name."""
    by_score = {"field_name": f"metrics.{name}", "ascending": False, "dataset_name": benchmark}
    token = None
    while True:
        page = client.search_logged_models(
            [experiment_id], order_by=[by_score], page_token=token, max_results=100
        )
        for model in page:
            scores = {point.key: point.value for point in model.metrics or []}
            if name not in scores:
                return  # models without the score come last
            yield model, scores
        token = page.token
        if not token:
            return


def table(client: MlflowClient, experiment_id: str, benchmark: str, metric: str) -> str:
    """The best models on a benchmark as Markdown, references and published ones among them."""
    name = records.score_name(benchmark, metric)
    best_first = islice(ranked(client, experiment_id, benchmark, name), SHOWN)
    rows = [
        f"| {place} | {_link(model)} | {model.tags.get('role', '')} | {_score(scores, name)} |"
        for place, (model, scores) in enumerate(best_first, 1)
    ]
    if not rows:
        return ""
    head = f"Best on `{benchmark}` by {metric}, of all that was evaluated:"
    columns = "|  | model | role | score [95 % interval] |\n|---:|---|---|---|"
    return "\n".join([head, "", columns, *rows])


def _link(model: LoggedModel) -> str:
    return f"[{model.name}]({records.model_page(model.experiment_id, model.model_id)})"


def _score(scores: dict[str, float], name: str) -> str:
    low, high = scores.get(f"{name}_low"), scores.get(f"{name}_high")
    interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
    return f"{scores[name]:.4f}{interval}"


def _is_among(model: LoggedModel, arms: Sequence[str], step: int | None) -> bool:
    if step is not None and model.params.get("step") != str(step):
        return False
    if arms:
        return model.tags.get("arm") in arms
    return model.tags.get("role") == "arm"
