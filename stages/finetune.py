"""Token arrays -> the best checkpoint before overfitting.

Fine-tunes the base model, validates on all validation rows several times an epoch, finds the epoch where overfitting
begins and stops once that is confirmed. Losses grow in metrics/losses.csv while it trains, and in MLflow. The
checkpoint is the one with the lowest validation loss.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import typer
from pydantic import Field

from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Number, Params, Whole

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class FinetuneParams(Params):
    """Section `finetune` of params.yaml."""

    section: ClassVar[str] = "finetune"
    learning_rate: Number = Field(gt=0, lt=1)
    """Peak rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"]
    """How the rate goes down to 0 over all epochs."""
    warmup_fraction: Number = Field(ge=0, lt=1)
    """Share of all steps in which the rate rises to its peak."""
    epochs: Whole = Field(ge=1)
    """At most so many passes over the training rows."""
    batch_size: Whole = Field(ge=1)
    """Rows in one optimizer step."""
    micro_batch_size: Whole = Field(ge=1)
    """Rows computed at once; smaller needs less memory and changes nothing else."""
    weight_decay: Number = Field(ge=0)
    """Of AdamW, on matrices only."""
    max_grad_norm: Number = Field(gt=0)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "bf16", "fp32"]
    """Of matrix products; updates are always float32. auto: bf16 where the hardware has it."""
    validations_per_epoch: Whole = Field(ge=1)
    """Validations on all validation rows, spread over the epoch."""
    early_stopping: bool
    """Stop once overfitting is confirmed."""
    overfit_patience: Whole = Field(ge=1)
    """Validations above the minimum before overfitting can be confirmed."""
    overfit_p_value: Number = Field(gt=0, lt=1)
    """Largest p value of the paired test that confirms it."""
    seed: Whole = Field(ge=0)
    """Of the order of rows, and dropout if the model has any."""


@app.command(help=__doc__)
@one_line_errors()
def main(
    tokens: Annotated[Path, typer.Option(help="Token arrays.")] = Path("data/tokens"),
    base_model: Annotated[Path, typer.Option(help="Base model.")] = Path("data/base_model"),
    checkpoint: Annotated[Path, typer.Option(help="Written: the best checkpoint.")] = Path("data/checkpoint"),
    example_losses: Annotated[Path, typer.Option(help="Written: loss of each validation example.")] = Path(
        "data/validation_losses.parquet"
    ),
    losses: Annotated[Path, typer.Option(help="Written: the loss history.")] = Path("metrics/losses.csv"),
    plot: Annotated[Path, typer.Option(help="Written: the same as a picture.")] = Path("metrics/losses.png"),
    metrics: Annotated[Path, typer.Option(help="Written: best epoch, onset of overfitting.")] = Path(
        "metrics/finetune.json"
    ),
    speed: Annotated[Path, typer.Option(help="Written: tokens a second.")] = Path("metrics/speed.json"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = FinetuneParams.load(params)

    from stages.model import attention
    from stages.model.allocator import keep_freed_memory
    from stages.model.checkpoint import load_model, make_deterministic, pick_device, pick_dtype, save_checkpoint
    from stages.model.loss_plot import draw_losses
    from stages.model.records import LossWriter, summarize, write_example_losses
    from stages.model.training import train
    from stages.pipeline.files import read_json, replacing_folder, sha256_of, write_json
    from stages.pipeline.progress import say
    from stages.pipeline.tracking import FinetuneRun
    from stages.tokens.arrays import read_arrays

    keep_freed_memory()
    make_deterministic(settings.seed)
    device = pick_device()
    dtype = pick_dtype(settings.precision, device)
    training, validation = read_arrays(tokens / "train"), read_arrays(tokens / "validation")
    model = load_model(base_model, dtype, device, attention=attention.NAME)
    say(f"finetune: {model.num_parameters() / 1e6:.0f} M parameters, {str(dtype).removeprefix('torch.')} on {device}")
    data = {name: tokens / name / "input_ids.npy" for name in ("train", "validation")}
    with FinetuneRun(params, data | {"base_model": base_model / "origin.json"}) as run:
        knobs = settings.model_dump(exclude={"precision"})
        history = train(model, training, validation, on_validation=LossWriter(losses, run.log_losses), **knobs)
        summary = summarize(history)
        about = {"template": read_json(tokens / "tokens.json")["template"], "best_step": summary["best_step"]}
        with replacing_folder(checkpoint) as folder:
            save_checkpoint(folder, model, history.best_weights, base_model, about)
        write_example_losses(example_losses, history, validation.ids)
        draw_losses(plot, history.rows, history.onset)
        write_json(metrics, summary)
        measured = {"tokens_per_second": round(history.tokens_per_second, 1)}
        write_json(speed, measured | {"checkpoint_sha256": sha256_of(checkpoint / "model.safetensors")})
        run.finish(metrics, summary | measured, [plot, losses])
    found = f"overfitting from epoch {summary['best_epoch']:.2f}" if history.onset.seen else "no overfitting seen"
    sure = "" if not history.onset.seen else " (confirmed)" if history.onset.confirmed else " (not confirmed)"
    say(
        f"finetune: {found}{sure}; best validation loss {summary['best_validation_loss']:.4f} "
        f"after {summary['best_epoch']:.2f} of {summary['epochs_trained']:.2f} epochs, "
        f"{history.tokens_per_second:.0f} tokens/s"
    )


if __name__ == "__main__":
    app()
