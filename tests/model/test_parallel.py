"""Several processes train as one does; two gloo processes on the CPU stand for all."""

import functools
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor import DTensor

from stages.model import finetuning, gates, kernels, training
from stages.model.history import LossRow
from stages.model.noise import EmbeddingNoise
from stages.model.parallel import ALONE, Ranks, join, like, noticing_lost_ranks, shard, whole
from stages.model.schedule import seed_of
from stages.model.state import StateFolder
from stages.model.training import Data
from stages.model.validation import ExampleLosses
from stages.pipeline.errors import LostError, StoppedError, UserError
from stages.pipeline.stopping import Stop
from tests.model.making import CPU, arrays, examples, load, settings
from tests.model.several_processes import in_ranks

DATA = Data(arrays(examples(60)), arrays(examples(30, seed=1)))
ROWS = len(DATA.training.input_ids)
BATCH = 7
"""Divides neither by two processes nor by three, and leaves a last batch of one row: a process has none there."""

CHANGES: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "early_stopping": False}
STEPS = 2 * -(-ROWS // BATCH)


class Found(NamedTuple):
    """What a training leaves, of one process."""

    rows: list[LossRow]
    examples: list[ExampleLosses]
    weights: dict[str, Tensor]


class ToldAfter(Stop):
    """Told to stop once so many steps are done."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def reason(self) -> str | None:
        self._left -= 1
        return "told to" if self._left < 0 else None


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what costs a second in each process and changes no number."""
    monkeypatch.setattr(gates, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(finetuning, "keep_freed_memory", lambda expected: None)
    kernels.can_compile()


def train(
    folder: Path,
    state: Path,
    *,
    world: int = 2,
    dtype: torch.dtype = torch.float32,
    told_after: int | None = None,
    **changes: Any,
) -> list[Any]:
    """What each process found, or why it ended; the last of them is told to stop after so many steps."""
    chosen = settings(**CHANGES | changes)

    def work(ranks: Ranks) -> Found:
        stop = Stop() if told_after is None or ranks.rank < world - 1 else ToldAfter(told_after)
        with noticing_lost_ranks(ranks):
            history, _ = finetuning.finetune(
                chosen,
                DATA,
                folder,
                dtype,
                CPU,
                ranks,
                StateFolder(state),
                stop,
                lambda row: None,
                lambda step, text: None,
            )
        return Found(history.rows, history.examples, history.best_weights)

    return in_ranks(world, work)


@functools.cache
def undisturbed(folder: Path, *, world: int = 2, dtype: torch.dtype = torch.float32, **changes: Any) -> list[Found]:
    """The same for a training that nothing stops; run once for all tests."""
    with tempfile.TemporaryDirectory() as state:
        return train(folder, Path(state), world=world, dtype=dtype, **changes)


def check_like(several: list[Found], one: Found, tolerance: float) -> None:
    """The same losses in every row and for every example, and the same weights but for rounding."""
    assert len(one.rows) == len(several[0].rows)
    for process in several:
        check_same_losses(process, several[0])
    np.testing.assert_allclose(np.array(several[0].rows), np.array(one.rows), rtol=tolerance, atol=1e-9)
    for found, expected in zip(several[0].examples, one.examples, strict=True):
        np.testing.assert_allclose(found.response, expected.response, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found.full, expected.full, rtol=tolerance, atol=tolerance)
        assert np.array_equal(found.full_tokens, expected.full_tokens)
        assert np.array_equal(found.response_tokens, expected.response_tokens)
    assert several[0].weights.keys() == one.weights.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(several[0].weights[name].float(), weight.float(), rtol=0, atol=30 * tolerance)


def check_same_losses(found: Found, expected: Found) -> None:
    assert found.rows == expected.rows
    for mine, theirs in zip(found.examples, expected.examples, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def check_same_bytes(found: Found, expected: Found) -> None:
    check_same_losses(found, expected)
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(weight, expected.weights[name]) for name, weight in found.weights.items())


# Shares and sums


@given(rows=st.lists(st.integers(0, 999)), world=st.integers(1, 9))
def test_shares_are_a_partition(rows: list[int], world: int) -> None:
    shares = [Ranks(rank, world).share(rows) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == sorted(rows)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1, "none works much longer than another"


def test_sums_are_over_all_processes_and_each_has_them() -> None:
    def work(ranks: Ranks) -> tuple[list[float], list[float], bool]:
        tensor = torch.tensor([1.0, ranks.rank])
        assert ranks.sum(tensor) is tensor
        return tensor.tolist(), ranks.total(0.1, ranks.rank == 2), ranks.first

    found = in_ranks(3, work)
    assert [(summed, total) for summed, total, _ in found] == [([3.0, 3.0], [pytest.approx(0.3, abs=1e-15), 1.0])] * 3
    assert [first for *_, first in found] == [True, False, False]


def test_one_process_has_no_others_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join("cpu") == ALONE
    monkeypatch.delenv("WORLD_SIZE")
    assert join("cpu") == ALONE
    assert ALONE.total(0.1, 2) == [0.1, 2]
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
    assert ALONE.first


# One trajectory


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batch_size": 2}, id="two rows at once"),
        pytest.param({"micro_batch_size": 1, "method": "lora"}, id="one row at once, lora"),
        pytest.param({"gradient_checkpointing": True, "label_smoothing": 0.1}, id="checkpointed and smoothed"),
    ],
)
def test_two_processes_find_what_one_finds(tiny_llama: Path, sharding: str, changes: dict[str, Any]) -> None:
    assert ROWS % BATCH == 1
    (one,) = undisturbed(tiny_llama, world=1, **changes)
    assert one.rows[-1].train_loss < one.rows[0].train_loss
    check_like(undisturbed(tiny_llama, sharding=sharding, **changes), one, 1e-5)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_so_do_three_with_a_model_of_another_kind(tiny_gpt2: Path, sharding: str) -> None:
    (one,) = undisturbed(tiny_gpt2, world=1)
    check_like(undisturbed(tiny_gpt2, world=3, sharding=sharding), one, 1e-5)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_in_bfloat16_only_rounding_differs(tiny_llama: Path, sharding: str) -> None:
    """Sharded weights are float32 and compute in bfloat16, where others are bfloat16 with float32 masters."""
    (one,) = undisturbed(tiny_llama, world=1, dtype=torch.bfloat16)
    two = undisturbed(tiny_llama, dtype=torch.bfloat16, sharding=sharding)
    check_like(two, one, 1e-3)
    own = torch.float32 if sharding == "fsdp" else torch.bfloat16
    assert {weight.dtype for weight in two[0].weights.values()} == {own}


@pytest.mark.parametrize("optimizer", ["SGD", "Adagrad"])
def test_optimizers_work_on_parts_of_the_weights(tiny_llama: Path, optimizer: str) -> None:
    """torch has sharded versions of only some of its fused kernels."""
    (one,) = undisturbed(tiny_llama, world=1, optimizer=optimizer)
    check_like(undisturbed(tiny_llama, sharding="fsdp", optimizer=optimizer), one, 1e-5)


@pytest.mark.parametrize("optimizer", ["Adafactor", "Rprop"])
def test_those_that_cannot_are_refused(tiny_llama: Path, tmp_path: Path, optimizer: str) -> None:
    changes: dict[str, Any] = {"sharding": "fsdp", "optimizer": optimizer, "weight_decay": 0}
    for error in train(tiny_llama, tmp_path, **changes):
        assert isinstance(error, UserError)
        assert f"finetune.optimizer: {optimizer} cannot be sharded" in str(error)


def test_a_process_holds_a_part_and_can_have_the_whole(tiny_llama: Path) -> None:
    def work(ranks: Ranks) -> tuple[float, bool]:
        model = load(tiny_llama)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        shard(model, torch.float32)
        parameters = dict(model.named_parameters())
        local = sum(p.to_local().numel() for p in parameters.values() if isinstance(p, DTensor))
        same = all(torch.equal(whole(p.detach()), before[name]) for name, p in parameters.items())
        again = (like(before[name], p.detach()) for name, p in parameters.items())
        same &= all(torch.equal(whole(tensor), before[name]) for tensor, name in zip(again, parameters, strict=True))
        return local / sum(p.numel() for p in before.values()), same

    for share, same in in_ranks(2, work):
        assert share == pytest.approx(0.5, abs=0.01)
        assert same


# Noise


def test_each_process_and_step_has_noise_of_its_own(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed that is in force wherever noise is added."""
    assert len({seed_of(1, step, rank) for step in range(50) for rank in range(8)}) == 400
    real = EmbeddingNoise._add

    def add(noise: EmbeddingNoise, module: torch.nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        noisy = real(noise, module, inputs, embedded)
        if not torch.equal(noisy, embedded):
            with (tmp_path / f"seeds{os.environ['RANK']}").open("a") as file:
                print(torch.initial_seed(), file=file)
        return noisy

    monkeypatch.setattr(EmbeddingNoise, "_add", add)
    train(tiny_llama, tmp_path / "state", neftune_alpha=5, sharding="fsdp")
    seeds = [set((tmp_path / f"seeds{rank}").read_text().split()) for rank in range(2)]
    assert [len(of_rank) for of_rank in seeds] == [STEPS, STEPS]
    assert not seeds[0] & seeds[1]


# Stopped, and gone


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        pytest.param({"sharding": "none", "neftune_alpha": 5}, torch.bfloat16, id="bfloat16"),
        pytest.param(
            {"sharding": "fsdp", "method": "lora", "lora_dropout": 0.2, "optimizer": "NAdam"}, torch.float32, id="lora"
        ),
    ],
)
def test_one_is_told_to_stop_and_all_stop_and_go_on_to_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    stopped = train(tiny_llama, tmp_path, dtype=dtype, told_after=2, **changes)
    for error, reason in zip(stopped, ["by another process", "told to"], strict=True):
        assert isinstance(error, StoppedError)
        assert f"stopped after step 2 of {STEPS} ({reason})" in str(error)
    resumed = train(tiny_llama, tmp_path, dtype=dtype, **changes)
    for found, expected in zip(resumed, undisturbed(tiny_llama, dtype=dtype, **changes), strict=True):
        check_same_bytes(found, expected)


def killing(rank: int, real: Callable[..., Any], step: int) -> Callable[..., Any]:
    """A training step before which a process is killed."""
    calls = 0

    def train_step(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step and named["ranks"].rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    return train_step


@pytest.mark.parametrize(("sharding", "rank"), [("none", 1), ("fsdp", 0), ("fsdp", 1)])
def test_one_is_killed_and_the_other_notices_and_they_go_on_to_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str, rank: int
) -> None:
    changes: dict[str, Any] = {"sharding": sharding, "micro_batch_size": 2}
    with monkeypatch.context() as patched:
        patched.setattr(training, "train_step", killing(rank, training.train_step, step=4))
        ends = train(tiny_llama, tmp_path, save_every=2, **changes)
    assert ends[rank] is None
    assert isinstance(ends[1 - rank], LostError)
    assert str(ends[1 - rank]) == "finetune: another process is gone; run `dvc repro` to go on from the last state"
    assert StateFolder(tmp_path).latest_step() == 2
    resumed = train(tiny_llama, tmp_path, save_every=2, **changes)
    for found, expected in zip(resumed, undisturbed(tiny_llama, **changes), strict=True):
        check_same_bytes(found, expected)


@pytest.mark.parametrize(("ranks", "text"), [(Ranks(0, 2), "mat1 and mat2 shapes"), (ALONE, "gloo is not there")])
def test_a_mistake_of_ours_is_not_taken_for_a_lost_process(ranks: Ranks, text: str) -> None:
    with pytest.raises(RuntimeError, match=text), noticing_lost_ranks(ranks):
        raise RuntimeError(text)
