"""What the machine could do: the rate of square matrix products in bfloat16 and float32, as JSON."""

import json

import torch

from stages.model.gates import matrix_rate

SIZE = 4096
"""Larger than any cache, smaller than any memory."""

if __name__ == "__main__":
    cpu = torch.device("cpu")
    print(
        json.dumps(
            {name: matrix_rate(cpu, kind, SIZE) for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
        )
    )
