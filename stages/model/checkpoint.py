"""Models from and to disk, and what this machine computes with."""

import stages.model.quiet  # noqa: F401  (before what it quiets)

# isort: split
import shutil
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.model.sources import HUB_FILES
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json, write_json

Precision = Literal["auto", "bf16", "fp32"]


def pick_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What matrix products are computed in; `auto` is bfloat16 where the hardware multiplies it."""
    if precision == "auto":
        on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else on_cpu
        precision = "bf16" if has_bf16 else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, *, attention: str = "sdpa", **loading: Any
) -> PreTrainedModel:
    """Load a causal LM from safetensors; `attention` is one of transformers' implementations or our `packed`.

    `loading` goes to transformers.

    Raises:
        UserError: the folder holds none that can be read.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, local_files_only=True, **loading
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(folder, error) from None
    return cast(PreTrainedModel, model if loading else model.to(device))


def outline_of(folder: Path) -> PreTrainedModel:
    """The same model without its weights: what can be known of it for nothing.

    Raises:
        UserError: the folder holds none that can be read.
    """
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or ["damaged"])[0]
    return UserError(f"{folder}: cannot load a model ({reason}); rerun the stage that writes it")


def make_deterministic(seed: int) -> None:
    """The same inputs give the same bytes on one machine."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A net for reads of memory that was never written; a tenth of the time of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def stored_dtype(folder: Path) -> torch.dtype:
    """The type that a model's weights have on disk."""
    config = read_json(folder / "config.json")
    dtype: torch.dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    return dtype


def save_checkpoint(target: Path, model: PreTrainedModel, base_model: Path, about: dict[str, Any]) -> None:
    """Write a model in the base model's own type, with its tokenizer, into the folder `target`."""
    cast(Any, model).to(stored_dtype(base_model)).save_pretrained(target)
    for pattern in HUB_FILES:
        for file in sorted(base_model.glob(pattern)):
            if not (target / file.name).exists() and file.name != "origin.json" and "safetensors" not in file.name:
                shutil.copyfile(file, target / file.name)
    write_json(target / "onset.json", about)
