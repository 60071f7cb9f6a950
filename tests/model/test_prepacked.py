"""Prepacked layers give what the layers give that they stand for."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stages.model.checkpoint import load_model
from stages.model.prepacked import can_prepack, prepack

CPU = torch.device("cpu")

needs_bf16 = pytest.mark.skipif(not can_prepack(torch.bfloat16, CPU), reason="oneDNN has no bfloat16 on this machine")


class Block(nn.Module):
    """Layers as in a decoder layer, called with one input; `names` of the first three."""

    def __init__(self, names: tuple[str, str, str], bias: bool) -> None:
        super().__init__()
        self.names = names
        for name, size in zip(names, (48, 16, 16), strict=True):
            setattr(self, name, nn.Linear(32, size, bias=bias))
        self.alone = nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second, third = (getattr(self, name)(x) for name in self.names)
        return first, second, third, self.alone(first)


@needs_bf16
@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("one", "two", "three")], ids=["grouped", "apart"])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_are_the_same(names: tuple[str, str, str], bias: bool) -> None:
    torch.manual_seed(0)
    block = Block(names, bias).to(torch.bfloat16)
    for rows in (1, 64, 200):
        inputs = [torch.randn(rows, 32, dtype=torch.bfloat16) for _ in range(2)]
        expected = [block(x) for x in inputs]
        packed = Block(names, bias).to(torch.bfloat16)
        packed.load_state_dict(block.state_dict())
        prepack(packed, 64)
        assert not list(packed.parameters())
        for x, wanted in zip([*inputs, inputs[0]], [*expected, expected[0]], strict=True):
            for ours, theirs in zip(packed(x), wanted, strict=True):
                assert torch.allclose(ours.float(), theirs.float(), atol=2e-2, rtol=2e-2)


@needs_bf16
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@torch.no_grad()
def test_a_model_gives_the_same_logits(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    tokens = torch.arange(3, 43)[None]
    model = load_model(folder, torch.bfloat16, CPU)
    expected = model(input_ids=tokens).logits.float()
    prepack(model, 64)
    found = model(input_ids=tokens).logits.float()
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))
    assert not torch.equal(found, model(input_ids=tokens.flip(1)).logits.float())


def test_float32_and_gpus_keep_their_layers() -> None:
    assert not can_prepack(torch.float32, CPU)
    assert not can_prepack(torch.bfloat16, torch.device("cuda"))
