"""Token arrays -> the best checkpoint before overfitting.

Fine-tunes the base model, validates on all validation rows several times an epoch, finds the epoch where overfitting
begins and stops once that is confirmed. Losses grow in metrics/losses.csv while it trains, and in MLflow. The
checkpoint is the one with the lowest validation loss. Stopped or killed, it goes on where it was when it is run again.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from stages.model.settings import FinetuneParams
from stages.pipeline.errors import StoppedError, one_line_errors
from stages.pipeline.stopping import Stop, stoppable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Losses = Annotated[Path, typer.Option(help="The loss history.")]
ExampleLosses = Annotated[Path, typer.Option(help="Loss of each validation example at each validation.")]
ParamsFile = Annotated[Path, typer.Option(help="Parameters.")]


@app.callback(invoke_without_command=True, help=__doc__)
@one_line_errors()
def main(
    context: typer.Context,
    tokens: Annotated[Path, typer.Option(help="Token arrays.")] = Path("data/tokens"),
    base_model: Annotated[Path, typer.Option(help="Base model.")] = Path("data/base_model"),
    init: Annotated[Path, typer.Option(help="Checkpoints that finetune.init_from may name.")] = Path("data/init"),
    checkpoint: Annotated[Path, typer.Option(help="Written: the best checkpoint.")] = Path("data/checkpoint"),
    example_losses: ExampleLosses = Path("data/validation_losses.parquet"),
    losses: Losses = Path("metrics/losses.csv"),
    plot: Annotated[Path, typer.Option(help="Written: the same as a picture.")] = Path("metrics/losses.png"),
    metrics: Annotated[Path, typer.Option(help="Written: best epoch, onset of overfitting.")] = Path(
        "metrics/finetune.json"
    ),
    speed: Annotated[Path, typer.Option(help="Written: tokens a second.")] = Path("metrics/speed.json"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    if context.invoked_subcommand is not None:
        return
    settings = FinetuneParams.load(params)

    if settings.launch and "TORCHELASTIC_RUN_ID" not in os.environ:  # which torchrun sets
        from stages.model.launching import launch

        launch(settings.launch, "stages.finetune", sys.argv[1:])
        return

    stop = Stop()
    from stages.model.checkpoint import pick_device, pick_dtype
    from stages.model.environment import training_environment
    from stages.model.finetuning import finetune, fingerprint_of, found_in_words
    from stages.model.loss_plot import draw_losses
    from stages.model.parallel import join, leave, noticing_lost_ranks
    from stages.model.preparing import export, starting_folder
    from stages.model.records import LossWriter, summarize, write_example_losses
    from stages.model.state import StateFolder
    from stages.model.training import Data
    from stages.pipeline.environment import FILE as ENVIRONMENT
    from stages.pipeline.files import dvc_root, read_json, replacing_folder, sha256_of, write_json
    from stages.pipeline.progress import say
    from stages.pipeline.tracking import FinetuneRun
    from stages.pipeline.tracking_files import Files
    from stages.tokens.arrays import read_arrays

    device = pick_device()
    dtype = pick_dtype(settings.precision, device)
    ranks = join(device.type)
    start = starting_folder(base_model, init, settings)
    data = Data(read_arrays(tokens / "train"), read_arrays(tokens / "validation"))
    training = fingerprint_of(settings, tokens, start, dtype, device, ranks)
    state = StateFolder(dvc_root() / ".checkpoints" / training)
    mirrored = Files(params, metrics, losses, plot, base_model=base_model, checkpoint=checkpoint)
    with (
        stoppable(stop),
        state.locked() if ranks.first else nullcontext(),
        FinetuneRun(mirrored, training, quiet=not ranks.first) as run,
        noticing_lost_ranks(ranks),
    ):
        writer = LossWriter(losses if ranks.first else None, run.log_losses)
        history, tokens_per_second = finetune(
            settings, data, start, dtype, device, ranks, state, stop, writer, run.log_samples
        )
        if ranks.first:
            summary = summarize(history)
            about = {"template": read_json(tokens / "tokens.json")["template"], "best_step": summary["best_step"]}
            about |= {"method": settings.method}
            with replacing_folder(checkpoint) as folder:
                export(folder, start, base_model, settings, history.best_weights, about)
                write_json(folder / ENVIRONMENT, training_environment(device, dtype, ranks.world))
            write_example_losses(example_losses, history, data.validation.ids)
            draw_losses(plot, history.rows, history.found)
            write_json(metrics, summary)
            measured = {"tokens_per_second": round(tokens_per_second, 1)}
            write_json(speed, measured | {"checkpoint_sha256": sha256_of(checkpoint / "model.safetensors")})
            run.finish(measured)
            if stop.reason is not None:  # DVC will not record what it did not wait for
                raise StoppedError(f"finetune: stopped at its end ({stop.reason}); run `dvc repro` to go on")
            state.remove()
    leave(ranks)
    say(f"finetune: {found_in_words(history)}, {tokens_per_second:.0f} tokens/s")


@app.command()
@one_line_errors()
def onset(
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Largest p value that confirms.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Validations above the minimum.")] = None,
    losses: Losses = Path("metrics/losses.csv"),
    example_losses: ExampleLosses = Path("data/validation_losses.parquet"),
    plot: Annotated[Path, typer.Option(help="Written: the losses with that onset.")] = Path("metrics/onset.png"),
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Look for the onset of overfitting in a finished training again, with other thresholds and without training.

    Every line is what was known after that validation; training would have stopped at the first that is confirmed.
    GL, PQ and UP are Prechelt's criteria (1998), beside ours.
    """
    settings = FinetuneParams.load(params)

    from stages.model.loss_plot import draw_losses
    from stages.model.records import read_histories
    from stages.model.replay import replay, table_of

    rows, response_losses, response_tokens = read_histories(losses, example_losses)
    looks = replay(
        rows,
        response_losses,
        response_tokens,
        patience=patience or settings.overfit_patience,
        threshold=settings.overfit_p_value if threshold is None else threshold,
    )
    print(table_of(looks))
    seen = looks[: next((at for at, look in enumerate(looks) if look.onset.confirmed), len(looks) - 1) + 1]
    draw_losses(plot, [look.row for look in looks], seen[-1].onset)
    print(f"Picture: {plot}")


if __name__ == "__main__":
    app()
