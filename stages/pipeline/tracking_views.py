"""Views that MLflow's UI opens ready-made: results as a table by score, and loss curves with the onset on them.

MLflow keeps a view that is shared as a tag of the experiment, its address naming the tag: what its button Share writes.
"""

import json
from collections.abc import Mapping
from typing import Any

VIEW_TAG = "mlflow.sharedViewState."
NOTE = "mlflow.note.content"
"""What MLflow's UI shows as the description."""

COLUMNS = (
    "metrics.`score`", "metrics.`base_score`", "metrics.`win_rate`", "metrics.`best_validation_loss`",
    "metrics.`overfit_epoch`", "tags.`dvc.experiment`",
)  # fmt: skip
"""Of the table of results."""

TRAINING = "Training"
CURVES = {
    "Losses, with the onset of overfitting": ("validation_loss", "train_loss", "onset"),
    "Token accuracy": ("validation_accuracy", "train_accuracy"),
    "Learning rate": ("learning_rate",),
}
"""Metrics of each chart by its title; `onset` is a line that stands on the lowest validation loss."""


def views() -> dict[str, dict[str, Any]]:
    """The state of each view by its name, as MLflow's UI keeps it."""
    others = [_section(name) | {"display": False} for name in ("Model metrics", "System metrics")]
    return {
        "results": {
            "searchFilter": "tags.kind = 'judge'",
            "orderByKey": "metrics.`score`",
            "orderByAsc": False,
            "selectedColumns": list(COLUMNS),
        },
        "curves": {
            "searchFilter": "tags.kind = 'finetune'",
            "compareRunCharts": [_line_chart(title, names) for title, names in CURVES.items()],
            "compareRunSections": [_section(TRAINING) | {"columns": 2, "cardHeight": 460}, *others],
            "isAccordionReordered": True,
        },
    }


def _section(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}


def _line_chart(title: str, metrics: tuple[str, ...]) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": title,
        "metricSectionId": TRAINING,
        "metricKey": metrics[0],
        "selectedMetricKeys": list(metrics),
        "displayName": title,
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "displayPoints": True,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 10,
    }


def offer_views(client: Any, experiment_id: str, tags: Mapping[str, str]) -> None:
    """Write the views, and links to them as the experiment's description; `tags` are those that it has.

    A description of somebody's own is kept.
    """
    ours = {VIEW_TAG + name: json.dumps(state, sort_keys=True) for name, state in views().items()}
    note = {} if NOTE in tags else {NOTE: _links(experiment_id)}
    for name, value in (ours | note).items():
        if tags.get(name) != value:
            client.set_experiment_tag(experiment_id, name, value)


def _links(experiment_id: str) -> str:
    runs = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return f"[Results by score]({runs}results) · [Loss curves with the onset]({runs}curves&compareRunsMode=CHART)"
