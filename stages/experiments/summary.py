"""The few lines that end a run."""

from collections.abc import Mapping
from typing import Any

from stages.pipeline.environment import in_words

Metrics = dict[str, Any]

FEW_ROWS = 30
"""Test rows; from fewer, a resampled interval is too narrow (Hesterberg 2015, doi:10.1080/00031305.2015.1089789)."""

NONE = "none: not one verdict could be read"


def summarize(
    split: Metrics,
    tokens: Metrics,
    finetuned: Metrics,
    judged: Metrics,
    measured: Metrics,
    elsewhere: Mapping[str, tuple[Any, Any]],
) -> list[str]:
    """Lines for a terminal, from the stages' metrics.

    `measured` is what benchmarks came to, if any were asked for; `elsewhere` what differs between the environment that
    the checkpoint was made in and this one.
    """
    lines = [
        "",
        f"Data         {split['train']} train, {split['validation']} validation, {split['test']} test; "
        f"{split['leaked_rows']} leaked; {tokens['train']['supervised_tokens']} tokens with a loss an epoch",
        f"Training     {finetuned['epochs_trained']:.2f} epochs; validation loss "
        f"{finetuned['first_validation_loss']:.3f} before, {finetuned['best_validation_loss']:.3f} at its best",
        f"Overfitting  {_onset(finetuned)}",
        f"Score        {_score(judged)}",
        f"Win rate     {_win_rate(judged)}",
        f"ROUGE-L      {judged['rouge_l']:.3f}; base model {judged['base_rouge_l']:.3f}",
        f"Judge        {_trust(judged)}",
        *(f"Benchmark    {line}" for line in _wholes(measured)),
        *([f"Made         in another environment, not here: {in_words(elsewhere)}"] if elsewhere else []),
        "",
        "Read every answer  data/review.html",
        "Loss plot          metrics/losses.png",
        "All on one page    make report",
        "Compare runs       make ui, then http://127.0.0.1:5000; or dvc exp show --only-changed",
    ]
    return lines


def _wholes(measured: Metrics) -> list[str]:
    """Benchmarks as such, not their parts: the first metric of each."""
    lines = []
    for name, one in measured.items():
        if "/" not in name:
            metric, values = next(iter(one["metrics"].items()))
            shown = ", ".join(f"{model} {own['value']:.3f}" for model, own in values.items())
            lines.append(f"{name} {metric}: {shown}")
    return lines


def _onset(finetuned: Metrics) -> str:
    if finetuned["overfit_epoch"] < 0:
        return (
            f"not seen; the lowest validation loss is at epoch {finetuned['best_epoch']:.2f}; train longer to see more"
        )
    sure = "confirmed" if finetuned["overfit_confirmed"] else "not confirmed"
    return (
        f"began at epoch {finetuned['overfit_epoch']:.2f} (step {finetuned['best_step']}), {sure}, "
        f"p = {finetuned['overfit_p_value']:.2g}; the checkpoint is from there"
    )


def _score(judged: Metrics) -> str:
    if "score" not in judged:
        return NONE
    base = f"; base model {judged['base_score']:.1f}" if "base_score" in judged else ""
    trust = f"; judge AUC {judged['judge_auc']:.2f}" if "judge_auc" in judged else ""
    few = f"; ONLY {judged['rows']} ROWS, TOO FEW TO TELL" if judged["rows"] < FEW_ROWS else ""
    return f"{_with_interval(judged, 'score', 1)} of 100{base}{trust}{few}"


def _win_rate(judged: Metrics) -> str:
    return f"{_with_interval(judged, 'win_rate', 2)} against the base model" if "win_rate" in judged else NONE


def _with_interval(judged: Metrics, name: str, digits: int) -> str:
    text = f"{judged[name]:.{digits}f}"
    if f"{name}_low" in judged:
        low, high = judged[f"{name}_low"], judged[f"{name}_high"]
        text += f" ({judged['confidence']:.0%} interval {low:.{digits}f} to {high:.{digits}f})"
    return text


def _trust(judged: Metrics) -> str:
    """What the judge's card says of it, its worst side too."""
    text: str = judged["judge"]
    if "judge_auc" in judged:
        hardest, worst = min(judged["judge_auc_by_corruption"].items(), key=lambda kind: kind[1])
        missed = f"{hardest.replace('_', ' ')} (AUC {worst:.2f})" if worst < 1 else "none"
        text += f"; of corrupted answers it misses most often: {missed}"
    if not judged["judge_reliable"]:
        text += "; IT CANNOT BE RELIED ON: read the answers"
    if judged["invalid_fraction"] > 0:
        text += f"; {judged['invalid_fraction']:.1%} of verdicts invalid"
    return text
