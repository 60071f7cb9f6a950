"""Gradients of bfloat16 weights, added up in float32 where the optimizer takes them from."""

from typing import Any

import torch
from torch import Tensor

from stages.model import kernels

_ATTRIBUTE = "gradient_receiver"


class Receiver:
    """The float32 gradient of one weight's master; its memory is used again in every step."""

    def __init__(self, weight: Tensor, master: Tensor) -> None:
        self._master = master
        self._fresh = True
        setattr(weight, _ATTRIBUTE, self)
        weight.register_post_accumulate_grad_hook(self._on_gradient)

    def begin(self) -> None:
        """The step is over: what is there belongs to the past."""
        self._fresh = True

    def total(self) -> Tensor:
        """The sum since `begin`; zeros if nothing came, as to a process without a row."""
        total = self._total()
        if self._fresh:
            total.zero_()
            self._fresh = False
        return total

    def take(self, gradient: Tensor) -> None:
        """Add a gradient of the weight's shape."""
        if self._fresh:
            self._total().copy_(gradient)
        else:
            kernels.add_(self._total(), gradient)
        self._fresh = False

    def take_rows(self, numbers: Tensor, gradients: Tensor) -> None:
        """Add gradients (n, size) to the rows of these numbers, int64 (n,)."""
        self.total().index_add_(0, numbers, gradients.float())

    def _total(self) -> Tensor:
        if self._master.grad is None:
            self._master.grad = torch.empty_like(self._master)
        return self._master.grad

    def _on_gradient(self, weight: Tensor) -> None:
        """Take what autograd left, while it is still in the cache; nothing, where all went past it."""
        if weight.grad is not None:
            self.take(weight.grad)
            weight.grad = None


def receiver_of(weight: Tensor) -> Receiver | None:
    """Where gradients of this weight go past autograd; None: autograd collects them."""
    receiver: Any = getattr(weight, _ATTRIBUTE, None)
    return receiver if isinstance(receiver, Receiver) else None


def give(weight: Tensor, gradient: Tensor) -> Tensor | None:
    """Hand a gradient over; what is returned is for autograd to collect."""
    receiver = receiver_of(weight)
    if receiver is None:
        return gradient
    receiver.take(gradient)
    return None
