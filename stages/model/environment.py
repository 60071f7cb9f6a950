"""Where a checkpoint is made, in its record."""

import torch

from stages.pipeline.environment import Environment, this_environment


def training_environment(device: torch.device, dtype: torch.dtype, processes: int) -> Environment:
    """All that decides a training's last digits beside data, code and parameters."""
    where: Environment = {"device": device.type, "precision": str(dtype).removeprefix("torch.")}
    if device.type == "cuda":
        where |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    how = {
        "processes": processes,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return this_environment() | where | how
