"""NEFTune, arXiv 2310.05914: uniform noise on the embeddings while training."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.model.batches import Batch


class EmbeddingNoise:
    """Noise of strength alpha / sqrt(tokens * size), with the tokens of each example of a packed row by itself."""

    def __init__(self, model: PreTrainedModel, alpha: float) -> None:
        self._alpha = alpha
        self._tokens: Tensor | None = None
        if alpha > 0:
            model.get_input_embeddings().register_forward_hook(self._add)

    def expect(self, batch: Batch) -> None:
        """The batch that comes next."""
        if self._alpha > 0:
            starts = batch.blocks.starts.long()
            lengths = torch.diff(starts)
            self._tokens = torch.repeat_interleave(lengths, lengths).view_as(batch.input_ids)

    def _add(self, module: torch.nn.Module, _: Any, embedded: Tensor) -> Tensor:
        if not module.training or self._tokens is None:
            return embedded
        strength = self._alpha / torch.sqrt(self._tokens * embedded.shape[-1])
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * strength[..., None].to(embedded.dtype)
