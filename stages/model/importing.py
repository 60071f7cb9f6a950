"""A fetched model into Hugging Face layout: config.json, safetensors, tokenizer.json."""

import stages.model.quiet  # noqa: F401  (before what it quiets)

# isort: split
import shutil
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors import SafetensorError, safe_open
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stages.model.sources import HUB_FILES, weights_of
from stages.pipeline.errors import UserError

KNOWN_PRE_TOKENIZERS = ("gpt-2", "default", "smollm")
"""`tokenizer.ggml.pre` values whose pre-tokenizer is rebuilt exactly (llama.cpp, src/llama-vocab.cpp)."""


def import_model(path: Path, target: Path) -> str | None:
    """Write the model at `path` (a `.gguf` file or a folder) into the empty folder `target`.

    Returns its licence where the file names one.

    Raises:
        UserError: it cannot be read, holds no safetensors, or lacks a tokenizer.
    """
    if path.suffix == ".gguf":
        return _import_gguf(path, target)
    _import_folder(path, target)
    return None


def _import_folder(path: Path, target: Path) -> None:
    for weights in weights_of(path):
        try:
            with safe_open(weights, framework="pt") as file:
                file.keys()
        except SafetensorError as error:
            raise UserError(
                f"base_model.source: {weights} is not safetensors ({error}); fetch or convert it again"
            ) from None
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).exists():
            raise UserError(f"base_model.source: {path} lacks {name}; save model and tokenizer into one folder")
    for pattern in HUB_FILES:
        for file in sorted(path.glob(pattern)):
            if file.name != "README.md":
                shutil.copyfile(file, target / file.name)


def _import_gguf(path: Path, target: Path) -> str | None:
    """Dequantize a GGUF file to bfloat16."""
    try:
        fields = GGUFReader(path).fields
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"base_model.source: {path} is not a GGUF file ({error}); fetch it again") from None
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    _mend_pre_tokenizer(
        tokenizer, str(fields["tokenizer.ggml.pre"].contents()) if "tokenizer.ggml.pre" in fields else "default"
    )
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    _forget_quantization(model)
    model.save_pretrained(target)
    return str(fields["general.license"].contents()) if "general.license" in fields else None


def _mend_pre_tokenizer(tokenizer: Any, kind: str) -> None:
    """transformers gives every GPT-2-like GGUF tokenizer GPT-2's pre-tokenizer; SmolLM's cuts out each digit first."""
    if kind not in KNOWN_PRE_TOKENIZERS:
        known = ", ".join(KNOWN_PRE_TOKENIZERS)
        raise UserError(
            f"base_model.source: GGUF pre-tokenizer '{kind}' is not known ({known}); use the model's folder instead"
        )
    if kind == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _forget_quantization(model: PreTrainedModel) -> None:
    """Weights are plain again, but `save_pretrained` refuses while these marks are there."""
    for holder, names in (
        (model, ("is_quantized", "quantization_method", "hf_quantizer")),
        (model.config, ("quantization_config", "_is_quantized")),
    ):
        for name in names:
            if hasattr(holder, name):
                delattr(holder, name)
