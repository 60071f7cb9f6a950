"""Cross-entropy where there is a loss, and logits nowhere else."""

from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel

from stages.model import kernels
from stages.model.attention import make_blocks
from stages.model.batches import Batch
from stages.model.gradients import give

KEPT_LOGITS = 2**26
"""Logits up to this number are kept for the backward pass; more are computed anew, so many at a time."""

_has_plain_head: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class TokenLosses(NamedTuple):
    """Of each label that is not IGNORE_INDEX, in the order of `places`."""

    objective: Tensor
    """float32 (n,): what training makes smaller; `nll` unless labels are smoothed."""
    nll: Tensor
    """float32 (n,): negative log-likelihood in nats, without a gradient."""
    correct: Tensor
    """bool (n,): whether no other token was likelier."""
    places: Tensor
    """bool (batch, time)."""


def token_losses(model: PreTrainedModel, batch: Batch, labels: Tensor, label_smoothing: float = 0.0) -> TokenLosses:
    """Losses of `labels`, int64 (batch, time), where they are not IGNORE_INDEX.

    The output layer is made to see only those places: a vocabulary is large, and half of the tokens carry no loss.
    Smoothed labels give every token of the vocabulary a share of `label_smoothing`, arXiv 1512.00567.
    """
    places = labels >= 0
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if has_plain_head(model):
        hidden = model.base_model(**inputs, blocks=batch.blocks)[0][places]
        weight = cast(torch.nn.Linear, model.get_output_embeddings()).weight
        objective, nll, correct = cast(Any, _HeadLoss).apply(hidden, weight, labels[places], label_smoothing)
        return TokenLosses(objective, nll, correct, places)

    def only_places(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][places].unsqueeze(0),)

    handle = cast(torch.nn.Module, model.get_output_embeddings()).register_forward_pre_hook(only_places)
    try:
        logits = cast(Any, model)(**inputs, blocks=batch.blocks).logits[0].float()
    finally:
        handle.remove()
    chosen = labels[places]
    nll = cross_entropy(logits.detach(), chosen, reduction="none")
    objective = cross_entropy(logits, chosen, reduction="none", label_smoothing=label_smoothing)
    correct = logits.detach().gather(1, chosen[:, None])[:, 0] >= logits.detach().amax(1)
    return TokenLosses(objective, nll, correct, places)


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are nothing but the last hidden state times the output embeddings: looked up in a trial."""
    if model not in _has_plain_head:
        head = model.get_output_embeddings()
        sharded = isinstance(model, FSDPModule)  # its weights are there only while the whole model runs
        plain = type(head) is torch.nn.Linear and head.bias is None and not sharded
        if plain:
            ids = torch.arange(4, device=model.device)[None]
            inputs = {"input_ids": ids, "position_ids": ids, "blocks": make_blocks(ids), "use_cache": False}
            training = model.training
            model.eval()
            hidden = model.base_model(**inputs)[0]
            highest = linear(hidden, head.weight).abs().amax().clamp(min=1e-6)
            louder = torch.exp2(torch.log2(100 / highest).round())  # small logits would hide a soft cap
            handle = head.register_forward_pre_hook(lambda _, given: (given[0] * louder,))
            logits = cast(Any, model)(**inputs).logits
            handle.remove()
            plain = torch.allclose(linear(hidden * louder, head.weight), logits, rtol=1e-3, atol=1e-3)
            model.train(training)
        _has_plain_head[model] = plain
    return _has_plain_head[model]


class _Workspace:
    """One piece of memory for logits: as large as it was ever needed, since large blocks that come and go cost more."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self._of_weight = torch.empty(0)
        self.turn = 0
        """Counts what it was used for: logits of an earlier turn are gone."""

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits (n, vocabulary) of hidden states (n, size), in place of those before."""
        self.turn += 1
        size = len(hidden) * len(weight)
        if self._memory.numel() < size or (self._memory.dtype, self._memory.device) != (hidden.dtype, hidden.device):
            self._memory = hidden.new_empty(size)
        return torch.mm(hidden, weight.t(), out=self.latest(len(hidden), len(weight)))

    def of_weight(self, of_logits: Tensor, hidden: Tensor) -> Tensor:
        """Gradient of the output embeddings (vocabulary, size), in place of the one before."""
        shape = (of_logits.shape[1], hidden.shape[1])
        if self._of_weight.shape != shape or (self._of_weight.dtype, self._of_weight.device) != (
            hidden.dtype,
            hidden.device,
        ):
            self._of_weight = hidden.new_empty(shape)
        return torch.mm(of_logits.t(), hidden, out=self._of_weight)

    def latest(self, rows: int, vocabulary: int) -> Tensor:
        """The logits of this turn."""
        return self._memory[: rows * vocabulary].view(rows, vocabulary)


_workspace = _Workspace()


class _HeadLoss(torch.autograd.Function):
    """TokenLosses of hidden states (n, size), without float32 logits and with the gradient in their place."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = max(1, KEPT_LOGITS // len(weight))
        parts = []
        for start in range(0, len(hidden), rows):
            logits = _workspace.logits(hidden[start : start + rows], weight)
            parts.append(_losses(logits, labels[start : start + rows], label_smoothing))
        denominators, objective, nll, correct = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, labels, denominators)
        ctx.turn = _workspace.turn if len(hidden) <= rows else None
        ctx.label_smoothing, ctx.rows = label_smoothing, rows
        ctx.mark_non_differentiable(nll, correct)
        return objective, nll, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, denominators = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight: Tensor | None = None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            if ctx.turn == _workspace.turn:
                logits = _workspace.latest(len(hidden), len(weight))
                _workspace.turn += 1  # the gradient takes their place
            else:
                logits = _workspace.logits(hidden[part], weight)
            factors, even = gradients[0][part], ctx.label_smoothing / len(weight)
            rows = torch.arange(len(logits), device=logits.device)
            likelihood = torch.exp(logits[rows, labels[part]].float() - denominators[part])
            of_logits = kernels.softmax_times_(logits, denominators[part], factors, even)
            of_label = (likelihood - even - (1 - ctx.label_smoothing)) * factors
            of_logits[rows, labels[part]] = of_label.to(of_logits.dtype)
            torch.mm(of_logits, weight, out=of_hidden[part])
            if ctx.needs_input_grad[1]:
                more = give(weight, _workspace.of_weight(of_logits, hidden[part]))
                if more is not None:
                    of_weight = more.clone() if of_weight is None else of_weight.add_(more)
        return of_hidden, of_weight, None, None


def _losses(logits: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax's denominator, objective, negative log-likelihood and whether it is right, of logits (n, vocabulary)."""
    denominators, highest = kernels.log_sum_exp(logits)
    of_label = logits.gather(1, labels[:, None])[:, 0].float()
    nll = denominators - of_label
    objective = nll
    if label_smoothing:
        even = denominators - logits.mean(1, dtype=torch.float32)
        objective = (1 - label_smoothing) * nll + label_smoothing * even
    return denominators, objective.clone(), nll, of_label >= highest
