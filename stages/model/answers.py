"""A model's answers to prompts; each is kept as it comes, and none is written twice."""

import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from stages.model.calls import CallStore
from stages.model.checkpoint import load_model
from stages.model.decoding import NO_STOPS, Completion, Decoding, Job, OnAnswer, Stops, complete, end_tokens
from stages.model.endpoint import content_key
from stages.model.engine import TILE, Engine
from stages.model.gates import free_memory
from stages.model.prepacked import can_prepack, prepack
from stages.model.slots import UnsupportedModelError, bytes_per_token
from stages.model.state import fingerprint
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.progress import bar, say
from stages.pipeline.stopping import Stop

FREE_SHARE = 0.5
"""Of the memory that is free, for the keys and values of answers at work."""

PLAIN_BATCH = 32
"""Most prompts of a padded batch, whose memory is not known beforehand."""

CODE = ("answers", "attention", "decoding", "engine", "prepacked", "sampling", "slots", "vllm_engine")
"""Modules of this room whose change may change an answer."""


class Writer(NamedTuple):
    """Who writes answers, and how."""

    engine: Literal["local", "vllm"]
    how: Decoding
    batch_size: int
    """Answers at work at once."""
    dtype: torch.dtype
    device: torch.device


def answer(
    name: str,
    folder: Path,
    jobs: Sequence[Job],
    writer: Writer,
    end_of_text: int,
    store: CallStore,
    stop: Stop,
    *,
    stops: Stops = NO_STOPS,
    where: str = "generate",
) -> list[Completion]:
    """An answer to each job by the model in `folder`: from the store, else written and kept there.

    Texts in `stops` end an answer; `where` begins what an error says.

    Raises:
        StoppedError: told to stop; what was written is kept.
    """
    source = _source(folder, writer, end_of_text, stops)
    keys = [content_key({"source": source, "prompt": list(job.prompt), "seed": job.seed}) for job in jobs]
    done = {key: _restored(value) for key in dict.fromkeys(keys) if (value := store.get(key))}
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in done}
    asked = list(missing)
    started, written, tokens = time.perf_counter(), 0, 0
    with bar(f"answers of the {name}", len(asked)) as progress:

        def on_answer(at: int, completion: Completion) -> None:
            nonlocal written, tokens
            done[asked[at]] = completion
            store.put(asked[at], completion._asdict())
            written, tokens = written + 1, tokens + len(completion.token_ids)
            seconds = time.perf_counter() - started
            progress.advance(note=f"{written / seconds:.1f} answers/s, {tokens / seconds:.0f} tokens/s")

        def on_step() -> None:
            if stop.reason:
                raise StoppedError(
                    f"{where}: stopped ({stop.reason}), {len(done)} of {len(set(keys))} answers of the {name} are "
                    "kept; run it again to go on"
                )

        if asked:
            _write(folder, [missing[key] for key in asked], writer, end_of_text, stops, on_answer, on_step)
    seconds = time.perf_counter() - started
    speed = f", {len(asked) / seconds:.1f} answers/s, {tokens / seconds:.0f} tokens/s" if asked else ""
    kept = f", {len(set(keys)) - len(asked)} kept from before" if len(asked) < len(set(keys)) else ""
    say(f"  {name}: {len(asked)} answers written{speed}{kept}")
    return [done[key] for key in keys]


def _write(
    folder: Path,
    jobs: Sequence[Job],
    writer: Writer,
    end_of_text: int,
    stops: Stops,
    on_answer: OnAnswer,
    on_step: Callable[[], None],
) -> None:
    if writer.engine == "vllm":
        from stages.model.vllm_engine import complete_by_vllm

        complete_by_vllm(folder, jobs, writer.how, end_of_text, writer.dtype, on_answer)
        return
    model = load_model(folder, writer.dtype, writer.device)
    ends = end_tokens(model, end_of_text)
    room = _room(model.config, jobs, writer.how)
    try:
        fitting = int(free_memory(writer.device) * FREE_SHARE) // (bytes_per_token(model.config, writer.dtype) * room)
        batch_size = max(1, min(writer.batch_size, len(jobs), fitting))
        if can_prepack(writer.dtype, writer.device):
            prepack(model, TILE)
        engine = Engine(model, writer.how, ends, batch_size=batch_size, room=room, stops=stops)
        engine.run(jobs, on_answer, on_step)
    except UnsupportedModelError as error:
        say(f"  {folder}: answers come one batch after the other, by transformers' generate ({error})")
        model = load_model(folder, writer.dtype, writer.device)
        size, how = min(writer.batch_size, PLAIN_BATCH), writer.how
        complete(model, jobs, ends=ends, how=how, batch_size=size, on_answer=on_answer, on_step=on_step, stops=stops)


def _room(config: Any, jobs: Sequence[Job], how: Decoding) -> int:
    """The most tokens of prompt and answer together: a model with learned positions has no more than those.

    Raises:
        UserError: a prompt leaves no room for an answer.
    """
    longest = max(len(job.prompt) for job in jobs)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    if longest >= limit:
        raise UserError(
            f"generate: a prompt has {longest} tokens and the model takes {limit}, answer included; "
            "leave such rows out (format.max_characters) or take another base model"
        )
    return min(longest + how.max_new_tokens, limit)


def _source(folder: Path, writer: Writer, end_of_text: int, stops: Stops) -> str:
    """Hash of all that an answer depends on beside its prompt and seed: weights, settings, our code, the machine."""
    device = writer.device
    values = {
        "how": writer.how,
        "engine": writer.engine,
        "dtype": str(writer.dtype),
        "end_of_text": end_of_text,
        "stops": stops.texts,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    files = {name: Path(__file__).with_name(f"{name}.py") for name in CODE}
    weights = [path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name.endswith("config.json")]
    return fingerprint(values, files | {path.name: path for path in weights})


def _restored(value: dict[str, Any]) -> Completion:
    return Completion(value["token_ids"], value["finish_reason"])
