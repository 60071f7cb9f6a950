"""The elementwise work of a decoder layer and of the loss, as plain functions that torch.compile fuses into loops.

A training step on a CPU waits for memory more than for arithmetic; each of these reads and writes its tensors once.
They are written by hand together with their derivatives, so that no intermediate result has to be kept for the backward
pass. Everything is computed in float32 whatever the tensors are. Without a compiler they run as they stand.
"""

import functools
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from stages.pipeline.errors import UserError
from stages.pipeline.progress import say

Function = TypeVar("Function", bound=Callable[..., Any])

KINDS = 64
"""Kinds of arguments (precisions, sizes, gradients wanted or not) for which one kernel is compiled in a process."""

_state = {"compiled": False, "required": False}


def can_compile() -> bool:
    """Whether there is what torch.compile needs on a CPU: a C++ compiler, and the header of this Python."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = shutil.which(get_cpp_compiler()) is not None
    except InvalidCxxCompiler:
        return False
    return found and (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def use_compiled(wanted: bool, *, required: bool = False) -> None:
    """Fuse the kernels of this module from now on, or run them as they stand.

    A compiler that fails costs a warning and time, or, where it is required, raises `UserError`.
    """
    _state.update(compiled=wanted, required=required)


def _kernel(function: Function) -> Function:
    compile: Any = torch.compile  # whose overloads leave `recompile_limit` out
    fused = functools.cache(lambda: compile(function, dynamic=None, fullgraph=True, recompile_limit=KINDS))

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        if not _state["compiled"]:
            return function(*arguments)
        for tensor in arguments:  # one loop for any number of tokens, but for this model's own sizes
            if isinstance(tensor, torch.Tensor) and len(tensor) == len(arguments[0]):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            return fused()(*arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:  # before anything has run
            reason = (str(error).strip().splitlines() or [""])[0][:120]
            if _state["required"]:
                raise UserError(f"params.yaml: finetune.compile: the compiler fails ({reason}); take auto") from None
            say(f"warning: finetune.compile: the compiler fails ({reason}); training goes on without it, more slowly")
            use_compiled(False)
            return function(*arguments)

    return run  # type: ignore[return-value]


@_kernel
def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of rows (tokens, size), arXiv 1910.07467."""
    x = hidden.float()
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return (x * scale).to(hidden.dtype) * weight


@_kernel
def rms_norm_backward(
    gradient: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `rms_norm`: of hidden, with the gradient of the residual branch added, and of weight (float32)."""
    x, g = hidden.float(), gradient.float()
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    normed, scaled = x * scale, g * weight.float()
    of_hidden = scale * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return (of_hidden + residual.float()).to(hidden.dtype), (g * normed).sum(0)


@_kernel
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, arXiv 2002.05202, of (tokens, size)."""
    x = gate.float()
    return (x * torch.sigmoid(x) * up.float()).to(gate.dtype)


@_kernel
def swiglu_backward(
    gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`swiglu` once more, and its gradients of gate and up."""
    x, y, g = gate.float(), up.float(), gradient.float()
    sigmoid = torch.sigmoid(x)
    silu = x * sigmoid
    of_gate = g * y * (sigmoid + silu * (1 - sigmoid))
    return (silu * y).to(gate.dtype), of_gate.to(gate.dtype), (g * silu).to(gate.dtype)


@_kernel
def rotate(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, turned: int) -> torch.Tensor:
    """Rotary positions, arXiv 2104.09864, on the first `turned` of the heads side by side in (tokens, heads * size).

    cos and sin are float32 (tokens, size), each half the same; with sin negated this is its own gradient.
    """
    x = rows.view(len(rows), heads, 2, -1).float()  # the two halves of a head: concatenating them would be slow
    cos, sin = cos.view(len(rows), 1, 2, -1), sin.view(len(rows), 1, 2, -1)
    sign = 2 * torch.arange(2, device=rows.device)[:, None] - 1
    is_turned = (torch.arange(heads, device=rows.device) < turned)[:, None, None]
    return torch.where(is_turned, x * cos + x.flip(2) * sign * sin, x).to(rows.dtype).view_as(rows)


@_kernel
def causal_softmax(scores: torch.Tensor, scale: float, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis of scores (batch, queries, keys) where key <= query; positions int64 (axis,)."""
    x = torch.where(key[None, :] <= query[:, None], scores.float() * scale, float("-inf"))
    x = torch.exp(x - x.amax(-1, keepdim=True))
    return (x / x.sum(-1, keepdim=True)).to(scores.dtype)


@_kernel
def softmax_backward(probabilities: torch.Tensor, gradient: torch.Tensor, scale: float) -> torch.Tensor:
    """Gradient of the scores before scaling."""
    p, g = probabilities.float(), gradient.float()
    return (p * (g - (p * g).sum(-1, keepdim=True)) * scale).to(probabilities.dtype)


@_kernel
def zero_where(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rows (n, size) with those at places, bool (n,), zeroed."""
    return torch.where(places[:, None], 0.0, rows)


@_kernel
def transpose(matrix: torch.Tensor) -> torch.Tensor:
    """The transpose as a tensor of its own; torch's copy does this on one core."""
    return matrix.t().clone(memory_format=torch.contiguous_format)


@_kernel
def add_(total: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """total + more in place; torch's own makes a copy first where the types differ."""
    return total.add_(more)


@_kernel
def log_sum_exp(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the softmax's denominator and the highest, float32 (n,), of logits (n, vocabulary)."""
    x = logits.float()
    top = x.amax(1, keepdim=True)
    return torch.exp(x - top).sum(1).log() + top[:, 0], top[:, 0]


@_kernel
def softmax_times_(
    logits: torch.Tensor, denominators: torch.Tensor, factors: torch.Tensor, less: float
) -> torch.Tensor:
    """In place: softmax of logits (n, vocabulary) by their `log_sum_exp`, minus `less`, each row times its factor."""
    return logits.copy_((torch.exp(logits.float() - denominators[:, None]) - less) * factors[:, None])
