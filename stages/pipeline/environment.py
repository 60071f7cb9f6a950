"""What of a machine and its libraries may change the last digits of a result; no more, so that it is the same bytes."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.pipeline.files import read_json

FILE = "environment.json"
"""In a checkpoint: where it was made."""

LIBRARIES = (
    "torch", "transformers", "tokenizers", "tiktoken", "peft", "safetensors", "numpy", "scipy", "pandas", "pyarrow",
)  # fmt: skip

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets by which a processor's products are summed in another order."""

Environment = dict[str, Any]


def this_environment() -> Environment:
    """Python, libraries, processor and GPUs of this machine; reads files alone, which takes milliseconds."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),  # its patch releases compute alike
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "gpus": _gpus(),
        **{name: found for name in LIBRARIES if (found := _version(name))},
    }


def read_environment(checkpoint: Path) -> Environment:
    """Where a checkpoint was made; empty: it does not say."""
    path = checkpoint / FILE
    found: Environment = read_json(path) if path.is_file() else {}
    return found


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, of that which both tell."""
    return {name: (then[name], now[name]) for name in then if name in now and then[name] != now[name]}


def in_words(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """One line, as in `torch 2.12.0, here 2.13.0`."""
    return "; ".join(f"{name} {_shown(then)}, here {_shown(now)}" for name, (then, now) in differences.items())


def _shown(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """Model of the processor, and those of its instruction sets that matter."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    has = set(fields.get("flags", fields.get("Features", "")).split())
    return f"{fields.get('model name', platform.machine())} ({' '.join(name for name in INSTRUCTIONS if name in has)})"


def _gpus() -> list[str]:
    """Models of NVIDIA GPUs, as their driver names them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found
