"""The model that is trained, made ready as the parameters say, and the checkpoint that comes of it."""

import gc
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.model import attention, kernels
from stages.model.adapters import SUBFOLDER, add_adapters, merged, save_adapter
from stages.model.checkpoint import load_model, save_checkpoint
from stages.model.fused import can_fuse, fuse
from stages.model.parallel import Ranks, shard
from stages.model.settings import FinetuneParams
from stages.pipeline.errors import UserError
from stages.tokens.arrays import NO_EXAMPLE, TokenArrays


class Ways(NamedTuple):
    """How a training computes."""

    fused: bool
    """Layers run as stages/model/fused.py has them."""
    compiled: bool
    """torch.compile fuses the elementwise work of our own code."""
    compiled_layers: bool
    """It makes transformers' layers faster, as it does on GPUs alone."""
    sharded: bool
    """Each process keeps a part of the weights."""

    def __str__(self) -> str:
        words = "fused layers" if self.fused else "transformers' layers"
        return f"{words}, compiled" if (self.compiled and self.fused) or self.compiled_layers else words


def choose_ways(model: PreTrainedModel, settings: FinetuneParams, device: torch.device, ranks: Ranks) -> Ways:
    """The fastest ways there are for a model, of which an outline will do.

    Raises:
        UserError: torch.compile is wanted and has no compiler here.
    """
    on_cpu = device.type == "cpu"
    compiler = kernels.can_compile() if on_cpu else importlib.util.find_spec("triton") is not None
    if settings.compile == "true" and not compiler:
        raise UserError(
            "params.yaml: finetune.compile: there is no compiler here; install g++ and python3-dev, or set it to auto"
        )
    sharded = settings.sharding == "fsdp" and ranks.world > 1
    wanted = compiler and settings.compile != "false"
    fused = wanted and on_cpu and not sharded and settings.method == "full" and can_fuse(model)
    return Ways(fused, wanted, wanted and not on_cpu, sharded)


def starting_folder(base_model: Path, init: Path, settings: FinetuneParams) -> Path:
    """Where the weights that training starts from lie.

    Raises:
        UserError: `init_from` names no checkpoint, or one with another tokenizer.
    """
    if settings.init_from is None:
        return base_model
    folder = init / settings.init_from
    if not (folder / "config.json").is_file():
        raise UserError(
            f"params.yaml: finetune.init_from: {folder} holds no checkpoint (config.json, model.safetensors)"
        )
    if (folder / "tokenizer.json").read_bytes() != (base_model / "tokenizer.json").read_bytes():
        raise UserError(f"params.yaml: finetune.init_from: {folder} has another tokenizer than the base model")
    return folder


def load_plain(folder: Path, settings: FinetuneParams, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model as transformers has it."""
    if settings.method != "qlora":
        return load_model(folder, dtype, device)
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "params.yaml: finetune.method: qlora needs a CUDA GPU and `pip install bitsandbytes`; take lora here"
        )
    from transformers import BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return load_model(folder, dtype, device, quantization_config=quantized, device_map={"": device})


def prepare(model: PreTrainedModel, settings: FinetuneParams, dtype: torch.dtype, ways: Ways) -> None:
    """Make a plain model ready to be trained, in place; sharded weights are float32 and compute in `dtype`."""
    if settings.method != "full":
        add_adapters(model, settings)
    model.set_attn_implementation(attention.NAME)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    kernels.use_compiled(ways.compiled, required=settings.compile == "true")
    if ways.fused:
        fuse(model)
    if ways.compiled_layers:
        for layer in getattr(model.base_model, "layers", ()):
            layer.compile(dynamic=True)
    if ways.sharded:
        shard(model, dtype)


def check_window(model: PreTrainedModel, splits: Iterable[TokenArrays]) -> None:
    """Our attention sees whole examples.

    Raises:
        UserError: the model's own looks less far back than the longest example.
    """
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is None:
        return
    longest = max(int(np.bincount(arrays.example[arrays.example != NO_EXAMPLE]).max()) for arrays in splits)
    if longest > window:
        raise UserError(
            f"finetune: the model looks {window} tokens back and an example has {longest}; lower collate.max_seq_len"
        )


def export(
    folder: Path,
    start: Path,
    base_model: Path,
    settings: FinetuneParams,
    weights: Mapping[str, Tensor],
    about: dict[str, Any],
) -> None:
    """Write the checkpoint: the model of `start` with trained `weights`; adapters are merged, and kept beside it."""
    gc.collect()  # the model that was trained refers to itself
    model = load_model(start, torch.float32, torch.device("cpu"))
    adapted = None if settings.method == "full" else add_adapters(model, settings)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    if adapted is not None:
        save_adapter(folder / SUBFOLDER, adapted)
        model = merged(adapted)
    save_checkpoint(folder, model, base_model, about)
