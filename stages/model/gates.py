"""What is looked at before training: does it fit, how long will it take, does the model start where it should."""

import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from stages.model.adapters import add_adapters
from stages.model.optimizer import bytes_per_weight
from stages.model.parallel import Ranks
from stages.model.preparing import Ways
from stages.model.settings import FinetuneParams
from stages.model.validation import ExampleLosses
from stages.pipeline.errors import UserError
from stages.tokens.arrays import NO_EXAMPLE, TokenArrays

ASIDE = 900 << 20
"""Bytes of a process that has imported and compiled everything and holds nothing."""

FRAGMENTED = {"cpu": 1.4, "cuda": 1.1}
"""What tensors of many sizes that come and go take, as a multiple of their own: on a CPU as measured over two epochs of
the default model; on a GPU a guess."""

STATES_KEPT = {True: (4, 4), False: (15, 6)}
"""Tensors of the hidden size, and of the MLP's size, that a layer keeps of each token for the backward pass: with fused
layers as counted in their code, with transformers' own as fitted to peaks of resident memory on a CPU (the default
model, both precisions, micro-batches of 1, 4 and 8 rows)."""

LOGITS_BYTES = 8
"""What a logit takes, with its gradient and what is computed between; less with fused layers."""

FRACTION_OF_RATE = {True: 0.45, False: 0.25}
"""Share of the machine's matrix rate that training reaches, fused or not; measured on a CPU (README)."""

CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Limit and use of memory as a container sees its own, in version 2 of cgroups and in version 1."""


class Need(NamedTuple):
    """What a training will take, roughly."""

    memory: int
    """Bytes, on the device that computes."""
    seconds: float
    """All epochs, validations included."""
    trained: int
    """Parameters that are trained."""
    weights: int
    """Parameters of the model."""


def estimate(
    outline: PreTrainedModel,
    settings: FinetuneParams,
    data: tuple[TokenArrays, TokenArrays],
    dtype: torch.dtype,
    device: torch.device,
    ways: Ways,
    ranks: Ranks,
) -> Need:
    """Memory from what is kept and for how long; time from the floating-point operations and a trial of the machine.

    The outline of a model is changed: it gets its adapters.
    """
    num_weights = sum(p.numel() for p in outline.parameters())
    if settings.method != "full":
        add_adapters(outline, settings)
    trained = [p.numel() for p in outline.parameters() if p.requires_grad]
    training, validation = data
    memory = _kept(num_weights, sum(trained), settings, dtype, device, ranks.world if ways.sharded else 1)
    memory += _passing(outline, settings, training, dtype, ways)
    seen = (training.example != NO_EXAMPLE).sum() * settings.epochs * (8 if settings.gradient_checkpointing else 6)
    seen += (validation.example != NO_EXAMPLE).sum() * (settings.epochs * settings.validations_per_epoch + 1) * 2
    rate = matrix_rate(device, dtype) * FRACTION_OF_RATE[ways.fused] * ranks.world
    memory = ASIDE + int(FRAGMENTED[device.type] * memory)
    return Need(memory, float(seen) * num_weights / rate, sum(trained), num_weights)


def _kept(
    num_weights: int, trained: int, settings: FinetuneParams, dtype: torch.dtype, device: torch.device, shards: int
) -> int:
    """Bytes of weights, their gradients and the optimizer's state, which stay from step to step."""
    per_trained = bytes_per_weight(settings.optimizer)
    if shards > 1:  # float32 weights are their own masters
        return (4 * (num_weights - trained) + per_trained * trained) // shards
    per_trained -= 4 if dtype == torch.float32 else 0  # the same; others have their masters beside them
    best = dtype.itemsize if device.type == "cpu" else 0  # where the best weights are kept
    size = 0.5 if settings.method == "qlora" else dtype.itemsize
    return int(num_weights * size + (per_trained + best) * trained)


def _passing(
    outline: PreTrainedModel, settings: FinetuneParams, training: TokenArrays, dtype: torch.dtype, ways: Ways
) -> int:
    """Bytes of what one micro-batch leaves for its backward pass, and of its logits."""
    config = outline.config.get_text_config()
    tokens = min(settings.micro_batch_size, len(training.input_ids)) * training.input_ids.shape[1]
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    of_hidden, of_inner = STATES_KEPT[ways.fused]
    layers = 2 if settings.gradient_checkpointing else config.num_hidden_layers
    states = tokens * (layers * (of_hidden * hidden + of_inner * inner) + config.num_hidden_layers * hidden)
    supervised = (training.labels >= 0).mean() * tokens
    return int(states * dtype.itemsize + supervised * config.vocab_size * LOGITS_BYTES)


def check_memory(need: Need, device: torch.device) -> int:
    """Bytes that are free.

    Raises:
        UserError: they are too few.
    """
    free = free_memory(device)
    if need.memory > free:
        raise UserError(
            f"finetune: needs about {need.memory / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; lower "
            "finetune.micro_batch_size, set finetune.gradient_checkpointing, or take finetune.method: lora"
        )
    return free


def free_memory(device: torch.device) -> int:
    """Bytes that this process may have in all: of the GPU, or its share of what the machine or container has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    free = min(int(psutil.virtual_memory().available), _free_in_container())
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + int(psutil.Process().memory_info().rss)


def _free_in_container() -> int:
    """Bytes up to the limit of this container; what it keeps of files would be given back."""
    for limit, used in CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # another version of cgroups, or no limit ("max")
            stat = dict(line.split() for line in (CGROUP / limit).with_name("memory.stat").read_text().splitlines())
            files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            return int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text()) + files
    return sys.maxsize


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of square matrix products, the best of a few."""
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        del product
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


@torch.no_grad()
def plain_losses(model: PreTrainedModel, arrays: TokenArrays, count: int = 4) -> dict[int, float]:
    """Summed loss over all tokens of a few examples, each alone, by transformers and nothing of ours."""
    model.eval()
    losses = {}
    for number in range(min(count, len(arrays.ids))):
        row, columns = np.nonzero(arrays.example == number)
        ids = torch.from_numpy(arrays.input_ids[row, columns].astype(np.int64))[None].to(model.device)
        targets = torch.from_numpy(arrays.next_ids[row, columns].astype(np.int64)).to(model.device)
        losses[number] = float(cross_entropy(model(input_ids=ids).logits[0].float(), targets, reduction="sum"))
    return losses


def check_start(plain: dict[int, float], found: ExampleLosses, vocabulary: int) -> str | None:
    """Hold the first validation against `plain_losses`; a warning where the base model knows nothing.

    Raises:
        UserError: they are not the same by more than rounding.
    """
    numbers = sorted(plain)
    expected = sum(plain[number] for number in numbers) / found.full_tokens[numbers].sum()
    ours = found.full[numbers].sum() / found.full_tokens[numbers].sum()
    if not abs(ours - expected) <= 0.02 * expected + 0.01:
        raise UserError(
            f"finetune: the base model's loss should be {expected:.3f} and is {ours:.3f} here: packing or a fast path "
            "is wrong for this model; set collate.strategy: pad and finetune.compile: false, and report it"
        )
    if found.full_loss >= math.log(vocabulary):
        guessing = math.log(vocabulary)
        return f"the base model's loss, {found.full_loss:.2f}, is that of guessing ({guessing:.2f}): is it trained?"
    return None
