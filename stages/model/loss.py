"""Cross-entropy where there is a loss, and logits nowhere else."""

from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from stages.model.batches import Batch


def token_losses(model: PreTrainedModel, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood, in nats, of each label that is not IGNORE_INDEX.

    Returns the losses, float32 (n,), and the mask of their places, bool (batch, time), in whose order they are.

    The output layer is made to see only those places: a vocabulary is large, and half of the tokens carry no loss.
    """
    places = labels >= 0

    def only_places(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][places].unsqueeze(0),)

    handle = cast(torch.nn.Module, model.get_output_embeddings()).register_forward_pre_hook(only_places)
    try:
        output: Any = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            blocks=batch.blocks,
            use_cache=False,
        )
    finally:
        handle.remove()
    return cross_entropy(output.logits[0].float(), labels[places], reduction="none"), places
