"""Optimizers of torch.optim on float32 masters of the weights."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.model.gradients import Receiver
from stages.model.parallel import ALONE, Ranks, like, whole
from stages.pipeline.errors import UserError


class MasterWeights:
    """An optimizer over float32 copies of the trained weights, which keep updates too small for bfloat16.

    Float32 weights are their own masters. Norms and biases, the parameters of fewer than two dimensions, have no weight
    decay. Among several processes gradients are summed: each has divided its loss by the tokens of the whole step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: str,
        weight_decay: float,
        options: Mapping[str, Any],
        ranks: Ranks = ALONE,
        sharded: bool = False,
    ) -> None:
        """Raise `UserError` where the optimizer does not know an option."""
        self._ranks = ranks
        self._sharded = sharded
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._masters = [p.detach().float().clone() if p.dtype != torch.float32 else p for p in self._weights]
        self._receivers = [
            Receiver(weight, master)
            for weight, master in zip(self._weights, self._masters, strict=True)
            if weight is not master
        ]
        groups = [
            {"params": [m for m in self._masters if m.dim() >= 2], "weight_decay": weight_decay},
            {"params": [m for m in self._masters if m.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = _make([group for group in groups if group["params"]], optimizer, options, sharded)

    def gradient_norm(self) -> float:
        """Norm of the whole gradient, summed over the processes before; not finite if any part of it is not."""
        for receiver in self._receivers:
            receiver.total()
        for master in self._masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            if not self._sharded:
                self._ranks.sum(master.grad)
        return float(whole(torch.nn.utils.get_total_norm([m.grad for m in self._masters if m.grad is not None])))

    def step(self, learning_rate: float, norm: float, max_grad_norm: float) -> None:
        """One update with gradients of this norm clipped to `max_grad_norm`."""
        if self._optimizer.defaults.get("fused"):  # divides by this as it goes, which saves a pass over all gradients
            scale = torch.tensor(max(1.0, norm / max_grad_norm), device=self._masters[0].device)
            cast(Any, self._optimizer).grad_scale = scale
        else:
            torch.nn.utils.clip_grads_with_norm_(self._masters, max_grad_norm, torch.tensor(norm))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._copy_to_weights()
        for receiver in self._receivers:
            receiver.begin()
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight is master:
                weight.grad = None

    def _copy_to_weights(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight is not master:
                weight.detach().copy_(master)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that later steps depend on: tensors, whole and on the CPU, and plain values.

        A tensor that lies transposed in memory is saved like that: a copy of all of them would double what is kept.
        """
        tensors = {f"master.{i}": _as_it_lies(whole(master.detach()).cpu()) for i, master in enumerate(self._masters)}
        values: dict[str, Any] = {}
        for i, state in self._optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{key}"] = _as_it_lies(whole(value).cpu())
                else:
                    values[f"{i}.{key}"] = value
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        for i, master in enumerate(self._masters):
            master.detach().copy_(_lying_like(tensors[f"master.{i}"], master))
        order = [master for group in self._optimizer.param_groups for master in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            kind, number, *key = name.split(".", 2)
            if kind == "optimizer":
                state.setdefault(int(number), {})[key[0]] = _lying_like(tensor, order[int(number)])
        for name, plain in values.items():
            number, key_text = name.split(".", 1)
            state.setdefault(int(number), {})[key_text] = plain
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._copy_to_weights()


def _as_it_lies(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.t()


def _lying_like(saved: Tensor, master: Tensor) -> Tensor:
    """What was saved of a master or of one of its moments, and of anything else as it is."""
    moment = saved if master.is_contiguous() else saved.t() if saved.dim() == 2 else saved
    return like(moment, master) if moment.shape == master.shape else saved


_MOMENTS = {"SGD": "m", "Adagrad": "v", "Adafactor": "", "Rprop": "mv", "RMSprop": "v", "ASGD": "m", "Adadelta": "mv"}
"""Tensors of a weight's size that an optimizer keeps, a letter each; others keep two."""


def bytes_per_weight(optimizer: str) -> int:
    """What master, gradient and the optimizer's moments take for one trained weight, float32 each."""
    return 4 * (2 + len(_MOMENTS.get(optimizer, "mv")))


def _make(groups: list[dict[str, Any]], name: str, options: Mapping[str, Any], sharded: bool) -> torch.optim.Optimizer:
    if sharded and name in ("Adafactor", "Rprop"):  # whose operations torch does not know on sharded tensors
        raise UserError(f"params.yaml: finetune.optimizer: {name} cannot be sharded (finetune.sharding); take AdamW")
    kind = getattr(torch.optim, name)
    known = inspect.signature(kind).parameters
    fused = {"fused": True} if name in ("AdamW", "Adam") or (name in ("SGD", "Adagrad") and not sharded) else {}
    taken = {"params", "lr", "weight_decay", "fused", "foreach", "capturable", "differentiable"}
    unknown = sorted(set(options) - set(known) | set(options) & taken)
    if unknown:
        allowed = ", ".join(key for key in known if key not in taken)
        raise UserError(
            f"params.yaml: finetune.optimizer_options: {name} does not take {', '.join(unknown)} here; known: {allowed}"
        )
    if "weight_decay" not in known:
        if any(group["weight_decay"] for group in groups):
            raise UserError(f"params.yaml: finetune.weight_decay: {name} has none; set it to 0")
        groups = [{"params": group["params"]} for group in groups]
    trial = torch.nn.Parameter(torch.zeros(2, 2))
    trial.grad = torch.zeros(2, 2)
    try:
        made: torch.optim.Optimizer = kind(groups, **fused, **options)
        kind([trial], **fused, **options).step()  # some options are not looked at before
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"params.yaml: finetune.optimizer_options: {name}: {error}") from None
    return made
