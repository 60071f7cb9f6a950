"""One fine-tuning from loading the model to the best weights, in this process's share."""

import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.model import kernels
from stages.model.allocator import keep_freed_memory
from stages.model.checkpoint import make_deterministic, outline_of
from stages.model.gates import check_memory, check_start, estimate, plain_losses
from stages.model.history import History, LossRow
from stages.model.optimizer import MasterWeights
from stages.model.parallel import Ranks
from stages.model.preparing import check_window, choose_ways, load_plain, prepare
from stages.model.samples import Sample, answer_samples, choose_samples
from stages.model.settings import FinetuneParams
from stages.model.state import StateFolder, fingerprint
from stages.model.training import Data, Trainer
from stages.model.validation import ExampleLosses
from stages.pipeline.progress import say
from stages.pipeline.stopping import Stop
from stages.tokens.tokenizer import Tokenizer

RESERVED = 8 << 30
"""Bytes of heap that are asked for in huge pages; it is address space, and memory only once it is used."""


def finetune(
    settings: FinetuneParams,
    data: Data,
    start: Path,
    dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks,
    state: StateFolder,
    stop: Stop,
    on_validation: Callable[[LossRow], None],
    on_samples: Callable[[int, str], None],
) -> tuple[History, float]:
    """Fine-tune the model in folder `start`; the history with the best weights, and tokens a second.

    Raises:
        UserError: it cannot fit, does not start where it should, or the loss is no longer finite.
        StoppedError: it was told to stop, and is saved.
    """
    if device.type == "cpu":
        keep_freed_memory(RESERVED)
    make_deterministic(settings.seed)
    outline = outline_of(start)
    ways = choose_ways(outline, settings, device, ranks)
    check_window(outline, data)
    need = estimate(outline, settings, data, dtype, device, ways, ranks)
    free = check_memory(need, device)
    say(
        f"finetune: {need.trained / 1e6:.1f} M of {need.weights / 1e6:.1f} M parameters, "
        f"{str(dtype).removeprefix('torch.')} on {ranks.world} x {device}, {ways}\n"
        f"  takes about {need.memory / 2**30:.1f} of {free / 2**30:.1f} GiB, and "
        f"{_duration(need.seconds)} if all {settings.epochs} epochs run"
    )
    on = torch.device("cpu") if ways.sharded else device  # sharding takes each layer to the device in turn
    model = load_plain(start, settings, torch.float32 if ways.sharded else dtype, on)
    expected = plain_losses(model, data.validation)
    tokenizer = Tokenizer(start)
    samples = choose_samples(data.validation, settings.sample_prompts, tokenizer)
    prepare(model, settings, dtype, ways)
    masters = MasterWeights(
        model,
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        options=settings.optimizer_options,
        ranks=ranks,
        sharded=ways.sharded,
    )

    def show_samples(step: int) -> None:
        if samples and (ranks.first or ways.sharded):
            answers = answer_samples(model, samples, tokenizer, settings.sample_tokens)
            for sample, answer in zip(samples, answers, strict=True):
                say(f"    {sample.id}: {answer[:100]}")
            on_samples(step, _sample_text(samples, answers, tokenizer))

    def look_at_first(examples: ExampleLosses) -> None:
        warning = check_start(expected, examples, model.config.get_text_config().vocab_size)
        if warning is not None:
            say(f"warning: {warning}")

    history = History(settings.overfit_patience, settings.overfit_p_value, on_validation)
    trainer = Trainer(
        model,
        data,
        settings,
        history,
        masters,
        ranks=ranks,
        state=state,
        stop_reason=lambda: stop.reason,
        on_validated=show_samples,
        on_first_validation=look_at_first,
    )
    trainer.run()
    return history, trainer.tokens_per_second


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _sample_text(samples: Sequence[Sample], answers: Sequence[str], tokenizer: Tokenizer) -> str:
    parts = []
    for sample, answer in zip(samples, answers, strict=True):
        prompt = tokenizer.decode(sample.prompt)
        parts.append(f"{sample.id}\nPROMPT     {prompt}\nREFERENCE  {sample.reference}\nANSWER     {answer}\n")
    return "\n".join(parts)


def fingerprint_of(
    settings: FinetuneParams, tokens: Path, start: Path, dtype: torch.dtype, device: torch.device, ranks: Ranks
) -> str:
    """Of all that the bytes of a training depend on: parameters, data, weights, our code, torch and the machine."""
    values = settings.model_dump() | {
        "torch": torch.__version__,
        "dtype": str(dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": ranks.world,
        "compiler": kernels.can_compile(),
    }
    files = {
        f"data/{path.relative_to(tokens)}": path
        for split in ("train", "validation")
        for path in (tokens / split).iterdir()
    }
    files |= {f"model/{path.name}": path for path in start.iterdir() if path.suffix in (".safetensors", ".json")}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and (
            name == "__main__" or (name.startswith("stages.") and not name.startswith("stages.pipeline.tracking"))
        ):
            files[f"code/{name}"] = Path(file)
    return fingerprint(values, files)


def found_in_words(history: History) -> str:
    """The end of a training for a reader."""
    onset, best = history.found, history.best
    found = f"overfitting from epoch {best.epoch:.2f}" if onset.seen else "no overfitting seen"
    sure = "" if not onset.seen else " (confirmed)" if onset.confirmed else " (not confirmed)"
    return (
        f"{found}{sure}; best validation loss {best.validation_loss:.4f} after {best.epoch:.2f} of "
        f"{history.rows[-1].epoch:.2f} epochs"
    )
