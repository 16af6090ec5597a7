"""Saved views of a study's experiment: what MLflow's page shows when one of them is opened.

A view is a tag of the experiment, as the page's own button *Views* writes it (mlflow 3.17,
`mlflow.sharedViewState.ID`). Which view a page opens with cannot be set: the experiment's
description links to them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reopold.study_config import StudyConfig
from tasks import tracking_records as records

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG, METHODS = "mlflow.sharedViewState.", "methods"
#: Of a section that holds every other metric with this prefix, shut until it is clicked.
_GROUPS = ("rollout", "teacher", "train", "perf")
#: How training went, over the samples that it drew.
_TRAINING = (
    "rollout/reward",
    "teacher/reward",
    "rollout/entropy",
    "rollout/length",
    "train/loss",
    "train/kept_fraction",
)
_SCORES = ("avg@k", "pass@k", "maj@k")


@dataclass(frozen=True)
class View:
    key: str
    name: str
    charts: bool
    """Opened as charts, else as a table."""
    state: Mapping[str, Any]

    def link(self, experiment_id: str) -> str:
        """Of the page; without `workflowType` it opens as that of a chat application."""
        mode = "CHART" if self.charts else "TABLE"
        return (
            f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
            f"&compareRunsMode={mode}&viewStateShareKey={self.key}"
        )

    def tag(self, created: int) -> str:
        """What the experiment's tag holds, the same for the same view (`created` in ms)."""
        packed = zlib.compress(json.dumps(self.state, separators=(",", ":")).encode())
        state = f"deflate;{base64.b64encode(packed).decode()}"
        envelope = {"name": self.name, "createdAt": created, "updatedAt": created, "state": state}
        return json.dumps(envelope)


def views(study: StudyConfig) -> list[View]:
    return [
        View(METHODS, "Methods over samples", True, _methods(study)),
        View("ranking", "Runs by score", False, _ranking(study)),
    ]


def saved(client: MlflowClient, experiment_id: str) -> bool:
    """Whether the experiment has views of ours."""
    return f"{TAG}{METHODS}" in client.get_experiment(experiment_id).tags


def save(client: MlflowClient, experiment_id: str, study: StudyConfig, created: int) -> list[View]:
    """Give the experiment its views, where they are not as they should be."""
    there = client.get_experiment(experiment_id).tags
    wanted = views(study)
    for view in wanted:
        tag = view.tag(created)
        if there.get(f"{TAG}{view.key}") != tag:
            client.set_experiment_tag(experiment_id, f"{TAG}{view.key}", tag)
    return wanted


def _score(study: StudyConfig, benchmark: str, metric: str) -> str:
    return records.score_name(benchmark, metric, study.evaluation.samples)


def _methods(study: StudyConfig) -> dict[str, Any]:
    """A line an arm, the mean over its seeds: first the scores, then how training went."""
    arms = [arm.name for arm in study.arms]
    charts: list[dict[str, Any]] = []
    sections: list[dict[str, Any]] = []
    for benchmark in study.evaluation.benchmarks:
        sections.append(_section(f"Evaluation: {benchmark}"))
        names = [_score(study, benchmark, metric) for metric in _SCORES]
        charts += [_line(name, "eval/samples", sections[-1]) for name in names]
        charts.append(_bars(names[0], sections[-1], len(arms)))
    sections.append(_section("Training"))
    charts += [_line(name, "samples", sections[-1]) for name in _TRAINING]
    others = [f"eval/{records.legal(name)}" for name in study.evaluation.benchmarks]
    sections += [_section(name, shown=False) for name in (*others, *_GROUPS)]
    return {
        "searchFilter": "tags.role = 'arm'",
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": "arm"}],
        },
        "groupsExpanded": {f"tag.arm.{arm}": False for arm in arms},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,  # else the page sorts sections by name
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }


def _ranking(study: StudyConfig) -> dict[str, Any]:
    """Every run by its last score, references and published numbers among them."""
    score = _score(study, study.evaluation.benchmark, _SCORES[0])
    tags = ("role", "arm", "seed", "phase", "alarms", "reopold.status", "origin", "caveat")
    metrics = [f"{score}{end}" for end in ("", "_low", "_high")]
    return {
        "searchFilter": "tags.role LIKE '%'",  # all but the study's own run
        "orderByKey": f"metrics.`{score}`",
        "orderByAsc": False,
        "groupBy": None,
        "selectedColumns": [
            *(f"tags.`{tag}`" for tag in tags),
            *(f"metrics.`{name}`" for name in metrics),
        ],
    }


def _section(name: str, *, shown: bool = True) -> dict[str, Any]:
    return {"uuid": f"section {name}", "name": name, "display": shown, "isReordered": False}


def _line(metric: str, x_axis: str, section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_chart("LINE", metric, section),
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": x_axis,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    }


def _bars(metric: str, section: Mapping[str, Any], runs: int) -> dict[str, Any]:
    return {**_chart("BAR", metric, section), "runsCountToCompare": runs}


def _chart(kind: str, metric: str, section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uuid": f"{kind} {metric}",
        "type": kind,
        "runsCountToCompare": 10,
        "metricSectionId": section["uuid"],
        "metricKey": metric,
        "deleted": False,
        "isGenerated": False,
    }
