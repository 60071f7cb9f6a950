"""Each kernel is what plain torch makes of its formula, its derivative what autograd makes of it, compiled or not."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, rms_norm, silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from stages.model import kernels
from tests.imports import ROOT

DICE = torch.Generator()
SIZE, HEADS, TURNED = 8, 6, 4
EPS = 1e-3


def rows(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, width, generator=DICE).to(dtype)


def angles(tokens: int) -> tuple[Tensor, Tensor]:
    turn = rows(tokens, SIZE // 2).repeat(1, 2)
    return turn.cos(), turn.sin()


@pytest.fixture(autouse=True)
def _same_numbers_and_eager_again() -> Iterator[None]:
    DICE.manual_seed(0)
    yield
    kernels.use_compiled(False)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(function(*leaves), leaves, gradient)


def test_rms_norm() -> None:
    hidden, weight, gradient, residual = rows(7, SIZE), rows(1, SIZE)[0], rows(7, SIZE), rows(7, SIZE)
    close(kernels.rms_norm(hidden, weight, EPS), rms_norm(hidden, [SIZE], weight, EPS))
    of_hidden, of_weight = gradients(lambda x, w: rms_norm(x, [SIZE], w, EPS), (hidden, weight), gradient)
    found = kernels.rms_norm_backward(gradient, hidden, weight, EPS, residual)
    close(found[0], of_hidden + residual)
    close(found[1], of_weight)


def test_swiglu() -> None:
    gate, up, gradient = rows(7, SIZE), rows(7, SIZE), rows(7, SIZE)
    close(kernels.swiglu(gate, up), silu(gate) * up)
    product, of_gate, of_up = kernels.swiglu_backward(gate, up, gradient)
    close(product, silu(gate) * up)
    expected = gradients(lambda gate, up: silu(gate) * up, (gate, up), gradient)
    close(of_gate, expected[0])
    close(of_up, expected[1])


def test_rotate_turns_the_first_heads_as_llama_does() -> None:
    tokens, (cos, sin), gradient = rows(7, HEADS * SIZE), angles(7), rows(7, HEADS * SIZE)

    def plain(tokens: Tensor) -> Tensor:
        heads = tokens.view(7, HEADS, SIZE).transpose(0, 1)[None]
        turned, _ = apply_rotary_pos_emb(heads[:, :TURNED], heads[:, :1], cos[None], sin[None])
        return torch.cat([turned, heads[:, TURNED:]], 1)[0].transpose(0, 1).reshape(7, -1)

    close(kernels.rotate(tokens, cos, sin, HEADS, TURNED), plain(tokens))
    (expected,) = gradients(plain, (tokens,), gradient)
    close(kernels.rotate(gradient, cos, -sin, HEADS, TURNED), expected)


def test_causal_softmax() -> None:
    """Two query heads side by side for each key head."""
    scores, gradient = torch.randn(2, 3, 10, 5, generator=DICE)
    key = torch.arange(5)
    query = key.repeat(2)

    def plain(scores: Tensor) -> Tensor:
        return (scores * 0.3).masked_fill(key > query[:, None], -math.inf).softmax(-1)

    found = kernels.causal_softmax(scores, 0.3, query, key)
    close(found, plain(scores))
    (expected,) = gradients(plain, (scores,), gradient)
    close(kernels.softmax_backward(found, gradient, 0.3), expected)


def test_large_scores_do_not_overflow() -> None:
    """exp(1000) is infinite; each softmax takes the highest off first."""
    key = torch.arange(4)
    scores = torch.tensor([[0.0, 1000, 999, -1000]])
    expected = (scores + torch.where(key > key[:, None], -math.inf, 0.0)).softmax(-1)
    close(kernels.causal_softmax(scores.expand(1, 4, 4), 1.0, key, key)[0], expected)
    close(kernels.log_sum_exp(scores)[0], scores.logsumexp(1))


def test_zero_where() -> None:
    matrix = rows(4, 3)
    matrix[1] = math.nan
    zeroed = kernels.zero_where(matrix, torch.tensor([False, True, False, True]))
    assert torch.equal(zeroed[[1, 3]], torch.zeros(2, 3))
    assert torch.equal(zeroed[[0, 2]], matrix[[0, 2]])


def test_transpose() -> None:
    matrix = rows(4, 3)
    found = kernels.transpose(matrix)
    assert torch.equal(found, matrix.t())
    assert found.is_contiguous()


def test_totals_in_float32_take_bfloat16() -> None:
    total, matrix = torch.zeros(3, 4), rows(3, 4, torch.bfloat16)
    kernels.add_(total, matrix)
    kernels.add_(total, matrix)
    assert torch.equal(total, 2 * matrix.float())


def test_the_softmax_of_the_loss() -> None:
    logits, factors = 5 * rows(7, 50), rows(7, 1)[:, 0]
    denominators, highest = kernels.log_sum_exp(logits)
    close(denominators, logits.logsumexp(1))
    assert torch.equal(highest, logits.max(1).values)
    expected = (log_softmax(logits, 1).exp() - 0.01) * factors[:, None]
    found = kernels.softmax_times_(logits, denominators, factors, 0.01)
    close(found, expected)
    assert found.data_ptr() == logits.data_ptr()


BROKEN = """
import sys, torch
from stages.model import kernels
from tests.imports import ROOT
assert kernels.can_compile()
kernels.use_compiled(True, required=len(sys.argv) > 1)
print(kernels.zero_where(torch.ones(2, 2), torch.tensor([True, False])).tolist())
print(kernels.zero_where(torch.ones(2, 2), torch.tensor([True, False])).tolist())
"""


@pytest.mark.skipif(not kernels.can_compile(), reason="no C++ compiler")
@pytest.mark.parametrize("required", [False, True])
def test_a_compiler_that_fails_costs_a_warning_unless_it_is_required(required: bool, tmp_path: Path) -> None:
    """It says its version, and that is all it can."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "g++ 12.2.0" && exit\necho "disk full" >&2\nexit 1\n')
    compiler.chmod(0o755)
    surroundings = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BROKEN, *(["required"] if required else [])]
    done = subprocess.run(command, env=os.environ | surroundings, capture_output=True, text=True)
    if required:
        assert "UserError: params.yaml: finetune.compile: the compiler fails (" in done.stderr
    else:
        assert done.stdout.splitlines() == ["[[0.0, 0.0], [1.0, 1.0]]"] * 2
        assert done.stderr.count("warning: finetune.compile: the compiler fails (") == 1


def arguments(kernel: str, tokens: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """What a fused layer or the loss would call a kernel with on so many tokens."""
    cos, sin = angles(tokens)
    key = torch.arange(tokens)
    scores = [torch.randn(3, 2 * tokens, tokens, generator=DICE).to(dtype) for _ in range(2)]
    known: dict[str, tuple[Any, ...]] = {
        "rms_norm": (rows(tokens, SIZE, dtype), rows(1, SIZE, dtype)[0], EPS),
        "rms_norm_backward": (
            rows(tokens, SIZE, dtype),
            rows(tokens, SIZE, dtype),
            rows(1, SIZE, dtype)[0],
            EPS,
            rows(tokens, SIZE, dtype),
        ),
        "swiglu": (rows(tokens, SIZE, dtype), rows(tokens, SIZE, dtype)),
        "swiglu_backward": (rows(tokens, SIZE, dtype), rows(tokens, SIZE, dtype), rows(tokens, SIZE, dtype)),
        "rotate": (rows(tokens, HEADS * SIZE, dtype), cos, sin, HEADS, TURNED),
        "causal_softmax": (scores[0], 0.3, key.repeat(2), key),
        "softmax_backward": (scores[0].float().softmax(-1).to(dtype), scores[1], 0.3),
        "zero_where": (rows(tokens, SIZE, dtype), rows(tokens, 1)[:, 0] > 0),
        "transpose": (rows(tokens, SIZE, dtype),),
        "add_": (rows(tokens, SIZE), rows(tokens, SIZE, dtype)),
        "log_sum_exp": (rows(tokens, 50, dtype),),
        "softmax_times_": (rows(tokens, 50, dtype), 5 + rows(tokens, 1)[:, 0], rows(tokens, 1)[:, 0], 0.01),
    }
    return known[kernel]


@pytest.mark.skipif(not kernels.can_compile(), reason="no C++ compiler")
@pytest.mark.parametrize(
    "kernel", [name for name, value in vars(kernels).items() if hasattr(value, "__wrapped__") and name[0] != "_"]
)
def test_a_compiled_kernel_is_the_eager_one(kernel: str) -> None:
    """In bfloat16, for as many tokens as a token has numbers, and then for more."""
    for tokens in (SIZE, 33):
        given = arguments(kernel, tokens, torch.bfloat16)
        results = []
        for compiled in (False, True):
            kernels.use_compiled(compiled)
            result = getattr(kernels, kernel)(*(x.clone() if isinstance(x, Tensor) else x for x in given))
            results.append(result if isinstance(result, tuple) else (result,))
        for eager, fused in zip(*results, strict=True):
            assert fused.dtype == eager.dtype
            torch.testing.assert_close(fused, eager, rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(not kernels.can_compile(), reason="no C++ compiler")
def test_one_process_may_meet_more_kinds_of_arguments_than_torch_compiles_by_default() -> None:
    kernels.use_compiled(True)
    kinds = [
        (dtype, learned)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32)
        for learned in ((False, True) if dtype.is_floating_point else (False,))
    ]
    assert len(kinds) > torch._dynamo.config.recompile_limit
    for dtype, learned in kinds:
        matrix = torch.ones(3, 2, dtype=dtype, requires_grad=learned)
        assert kernels.transpose(matrix).shape == (2, 3)
