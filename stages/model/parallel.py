"""Several processes that train one model: started by torchrun, each with its share of the rows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from stages.pipeline.errors import LostError


class Ranks(NamedTuple):
    """This process among all."""

    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, rows: list[int]) -> list[int]:
        """This process's share of rows; all shares together are the rows."""
        return rows[self.rank :: self.world]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def total(self, *numbers: float) -> list[float]:
        """The sums of a few numbers over all processes."""
        if self.world == 1:
            return list(numbers)
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        summed: list[float] = self.sum(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()
        return summed


ALONE = Ranks(0, 1)


def join(device_type: str) -> Ranks:
    """Meet the other processes, if torchrun has started this one among several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def noticing_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Raise `LostError` in place of what torch raises where the block waits for a process that is gone."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LostError("finetune: another process is gone; run `dvc repro` to go on from the last state") from None


def leave(ranks: Ranks) -> None:
    """Part in good order."""
    if ranks.world > 1:
        dist.destroy_process_group()


def shard(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """FSDP2: every process keeps a part of each float32 weight, and whole layers in `dtype` only while they compute.

    Gradients are summed over the processes, not averaged: the loss is divided by the tokens of the whole step already.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*getattr(model.base_model, "layers", getattr(model.base_model, "h", ())), model]:
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of the trained weights, whole and on the CPU; every process must ask."""
    if isinstance(model, FSDPModule):
        model.reshard()  # a forward pass leaves the outermost ones whole, in the type that it computes in
    trained = ((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad)
    return {name: whole(weight).to("cpu", copy=True).contiguous() for name, weight in trained}


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor sharded as `target` is, if it is; otherwise in memory as it lies, where fused optimizers look."""
    if isinstance(target, DTensor):
        return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)
    return torch.empty_like(target, dtype=tensor.dtype).copy_(tensor)
