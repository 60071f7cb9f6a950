"""Training and validation loss against epoch, with the onset of overfitting marked."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from stages.model.history import LossRow
from stages.model.onset import Onset
from stages.pipeline.files import replacing


def draw_losses(path: Path, rows: Sequence[LossRow], onset: Onset) -> None:
    """Write a PNG; the same history gives the same bytes."""
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    epochs = [row.epoch for row in rows]
    axes.plot(epochs, [row.train_loss for row in rows], marker="o", color="#2563eb", label="training")
    axes.plot(
        epochs, [row.validation_loss for row in rows], marker="o", color="#dc2626", label="validation (responses)"
    )
    best = rows[onset.best]
    if onset.seen:
        sure = "confirmed" if onset.confirmed else "not confirmed"
        label = f"overfitting from epoch {best.epoch:.2f} ({sure}, p = {onset.p_value:.2g})"
    else:
        label = f"best so far, epoch {best.epoch:.2f}: no overfitting seen"
    axes.axvline(best.epoch, color="#111827", linestyle="--", linewidth=1, label=label)
    if onset.seen:
        axes.axvspan(best.epoch, epochs[-1], color="#dc2626", alpha=0.06)
    axes.set(xlabel="epoch", ylabel="loss (nats per token)", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
