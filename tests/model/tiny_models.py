"""Tiny random models of several kinds, made in memory, with our attention."""

import stages.model.quiet  # noqa: F401  (before what it quiets)

# isort: split
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.model import attention

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZES_OF: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "mistral": {"sliding_window": None},
    "gemma2": {"head_dim": 8},
}
"""What a kind needs besides."""


def make_tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of this kind, as transformers names it; `changes` are of its config."""
    config = AutoConfig.for_model(kind, **SIZES | SIZES_OF.get(kind, {}) | changes)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # attention starts out nearly even over all tokens, and hides what is wrong
            else:  # norms and biases: ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.eval()
    return model
