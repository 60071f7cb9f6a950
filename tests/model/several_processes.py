"""Several processes that have met as those of torchrun do, forked from the test so that none starts Python anew."""

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stages.model.parallel import Ranks

Result = TypeVar("Result")

FORK = multiprocessing.get_context("fork")
WAIT = 120
"""Seconds after which a test gives up; nothing takes nearly as long."""


def in_ranks(world: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What `work` returns, or the exception that it raises, in each of `world` processes; None of one that is killed.

    Also one rank alone has a process of its own, since training changes the process that it runs in.
    """
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(world):
            end, other = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_run, args=(Ranks(rank, world), f"file://{folder}/store", work, other))
            process.start()
            other.close()
            ends.append(end)
            processes.append(process)
        results = [_received(end) for end in ends]
        for process in processes:
            process.join(WAIT)
        return results


def _run(ranks: Ranks, store: str, work: Callable[[Ranks], Any], end: Connection) -> None:
    os.environ["RANK"] = str(ranks.rank)
    torch.set_num_threads(1)
    if ranks.world > 1:
        dist.init_process_group("gloo", init_method=store, rank=ranks.rank, world_size=ranks.world)
    try:
        result = work(ranks)
    except Exception as error:
        result = error
    end.send_bytes(pickle.dumps(result))  # a tensor sent as such would be gone with this process
    end.close()
    if ranks.world > 1:
        dist.destroy_process_group()


def _received(end: Connection) -> Any:
    assert end.poll(WAIT), "a process hangs"
    try:
        return pickle.loads(end.recv_bytes())
    except EOFError:
        return None
