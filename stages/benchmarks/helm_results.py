"""What helm-run wrote of one run: run_spec.json, stats.json, per_instance_stats.json and scenario_state.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import Figure, Measurement, Row, Settings
from stages.benchmarks.estimates import estimate
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json

LIBRARY = "crfm-helm 0.5.16"
METRICS = (
    "exact_match", "quasi_exact_match", "prefix_exact_match", "quasi_prefix_exact_match", "f1_score", "rouge_1",
    "rouge_2", "rouge_l", "bleu_1", "bleu_4", "math_equiv", "math_equiv_chain_of_thought", "final_number_exact_match",
    "ifeval_strict_accuracy", "chain_of_thought_correctness", "bits_per_byte",
)  # fmt: skip
"""Those of what a model answered; others tell of requests, or are taken apart from these."""

Stat = dict[str, Any]


def read_run(folder: Path, model: str, settings: Settings) -> Measurement:
    """The figures and rows of one run, on the test split (else the validation split), nothing perturbed.

    Raises:
        UserError: it has none of the metrics that we know.
    """
    spec, stats = read_json(folder / "run_spec.json"), read_json(folder / "stats.json")
    adapter = spec["adapter_spec"]
    counts = {stat["name"]["split"]: int(stat["mean"]) for stat in _plain(stats, "num_instances")}
    split = next((name for name in ("test", "valid") if counts.get(name)), "")
    found = {metric: stat for metric in METRICS for stat in _plain(stats, metric) if stat["name"]["split"] == split}
    if len(found) > 1:
        found.pop("bits_per_byte", None)  # of language modelling; elsewhere it is 0 and says nothing
    if not found:
        raise UserError(f"helm: {spec['name']}: none of {', '.join(METRICS)} is in HELM's stats.json; take it out")
    instances = read_json(folder / "per_instance_stats.json")
    task = f"helm/{_without_model(spec['name'])}"
    figures = []
    for metric, stat in found.items():
        low, high = _limits(instances, metric, split, settings)
        figures.append(
            Figure(
                model=model,
                task=task,
                metric=metric,
                value=float(stat["mean"]),
                low=low,
                high=high,
                n=counts[split],
                run=1,
                out_of=1,
                shots=int(adapter["max_train_instances"]),
                protocol=f"HELM's own prompt, method {adapter['method']}; {split} split as it lies in the folder",
                template="none",
                library=LIBRARY,
                scope="sample",  # how many rows were published, nothing here can tell
            )
        )
    return Measurement(
        figures, _rows(read_json(folder / "scenario_state.json"), instances, task, model, split, next(iter(found)))
    )


def _without_model(name: str) -> str:
    """A run's name without its model: mmlu:subject=anatomy,method=multiple_choice_joint."""
    scenario, _, arguments = name.partition(":")
    kept = [argument for argument in arguments.split(",") if argument and not argument.startswith("model=")]
    return f"{scenario}:{','.join(kept)}" if kept else scenario


def _plain(stats: Sequence[Stat], metric: str) -> list[Stat]:
    return [stat for stat in stats if stat["name"]["name"] == metric and "perturbation" not in stat["name"]]


def _values(instances: Sequence[Stat], metric: str, split: str) -> dict[str, float]:
    """One metric by instance."""
    return {
        instance["instance_id"]: float(stat["mean"])
        for instance in instances
        for stat in _plain(instance["stats"], metric)
        if stat["name"]["split"] == split and not instance.get("perturbation")
    }


def _limits(
    instances: Sequence[Stat], metric: str, split: str, settings: Settings
) -> tuple[float | None, float | None]:
    values = list(_values(instances, metric, split).values())
    if not values:
        return None, None
    return estimate(values, resamples=settings.resamples, seed=settings.seed).limits(settings.confidence)


def _rows(state: Stat, instances: Sequence[Stat], task: str, model: str, split: str, metric: str) -> list[Row]:
    """One row an instance: the first request about it."""
    scores = _values(instances, metric, split)
    rows: dict[str, Row] = {}
    for request in state["request_states"]:
        instance = request["instance"]
        if instance.get("split") != split or instance.get("perturbation") or instance["id"] in rows:
            continue
        right = [one["output"]["text"] for one in instance["references"] if "correct" in one["tags"]]
        said = [completion["text"] for completion in request["result"]["completions"]]
        mapped = {text: letter for letter, text in (request.get("output_mapping") or {}).items()}
        rows[instance["id"]] = Row(
            model=model,
            task=task,
            id=instance["id"],
            prompt=request["request"]["prompt"],
            response=said[0] if said else "",
            target=" | ".join(mapped.get(text, text) for text in right),
            score=scores.get(instance["id"]),
        )
    return list(rows.values())
