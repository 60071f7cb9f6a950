"""Tiny trainings in process: made-up examples, parameters that suit them, and the training loop on a tiny model."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.model import attention
from stages.model.checkpoint import load_model, make_deterministic
from stages.model.decoding import Completion, Decoding, Job, complete, end_tokens
from stages.model.history import History, LossRow
from stages.model.optimizer import MasterWeights
from stages.model.parallel import ALONE
from stages.model.preparing import Ways, choose_ways, load_plain, prepare
from stages.model.settings import FinetuneParams
from stages.model.state import StateFolder
from stages.model.training import Data, Trainer
from stages.tokens.arrays import TokenArrays, collate
from stages.tokens.labels import Examples
from stages.tokens.packing import pack
from tests.imports import ROOT
from tests.tokens.examples import END, make_examples

CPU = torch.device("cpu")

TINY: dict[str, Any] = {
    "learning_rate": 5e-3,
    "warmup_fraction": 0.1,
    "epochs": 3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "precision": "fp32",
    "compile": "false",
    "validations_per_epoch": 2,
    "overfit_patience": 2,
    "sample_prompts": 0,
    "seed": 7,
}
"""Where a tiny model wants other parameters than the shipped ones."""


def settings(**changes: Any) -> FinetuneParams:
    """The shipped parameters but for TINY and these changes, checked as those of a user are."""
    shipped = FinetuneParams.load(ROOT / "params.yaml").model_dump()
    return FinetuneParams.model_validate(shipped | TINY | changes)


def examples(count: int, seed: int = 0, longest: int = 59) -> Examples:
    """Random examples of 2 to `longest` tokens, the latter part of each a response.

    Every third has an earlier response too.
    """
    dice = np.random.default_rng(seed)
    tokens, in_response = [], []
    for number in range(count):
        tokens.append([*dice.integers(3, 1000, dice.integers(2, longest)).tolist(), END])
        prompt = int(dice.integers(1, len(tokens[-1]) - 1))
        earlier = range(prompt // 4, prompt // 2) if number % 3 == 0 else ()
        in_response.append([at >= prompt or at in earlier for at in range(len(tokens[-1]))])
    return make_examples(tokens, in_response)


def arrays(made: Examples, strategy: str = "pack", *, width: int = 128, mask_instruction: bool = True) -> TokenArrays:
    """Those examples in rows of up to `width` tokens, or one a row with the strategy `pad`."""
    row_of = pack(made.lengths, width) if strategy == "pack" else np.arange(len(made.lengths))
    ids = [str(i) for i in range(len(row_of))]
    return collate(made, row_of, ids, end_of_text=END, mask_instruction=mask_instruction)


@functools.cache
def data() -> Data:
    """Packed rows to train on and to validate on. The tokens are random: a model can but learn them by heart."""
    return Data(arrays(examples(60)), arrays(examples(30, seed=1)))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in a folder with our attention."""
    return load_model(folder, dtype, CPU, attention=attention.NAME)


def greedy(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int, end_of_text: int) -> list[list[int]]:
    """Tokens of the answers, two prompts at a time."""
    done: dict[int, Completion] = {}
    complete(
        model,
        [Job(prompt) for prompt in prompts],
        ends=end_tokens(model, end_of_text),
        how=Decoding(max_new_tokens),
        batch_size=2,
        on_answer=done.__setitem__,
    )
    return [done[at].token_ids for at in range(len(prompts))]


class Training(NamedTuple):
    """A training and all that belongs to it."""

    trainer: Trainer
    history: History
    masters: MasterWeights
    model: PreTrainedModel
    ways: Ways
    settings: FinetuneParams


def make_training(
    folder: Path,
    state: Path,
    *,
    on: Data | None = None,
    dtype: torch.dtype = torch.float32,
    seen: list[LossRow] | None = None,
    stop_reason: Callable[[], str | None] = lambda: None,
    **changes: Any,
) -> Training:
    """A training of the model in `folder`, put together as stages/model/finetuning.py does; not run yet.

    `state` is its folder of states, and `seen` takes in the rows of the history.
    """
    chosen = settings(**changes)
    make_deterministic(chosen.seed)
    model = load_plain(folder, chosen, dtype, CPU)
    ways = choose_ways(model, chosen, CPU, ALONE)
    prepare(model, chosen, dtype, ways)
    masters = MasterWeights(
        model, optimizer=chosen.optimizer, weight_decay=chosen.weight_decay, options=chosen.optimizer_options
    )
    rows: list[LossRow] = [] if seen is None else seen
    history = History(chosen.overfit_patience, chosen.overfit_p_value, rows.append)
    trainer = Trainer(
        model,
        on or data(),
        chosen,
        history,
        masters,
        ranks=ALONE,
        state=StateFolder(state),
        stop_reason=stop_reason,
        on_validated=lambda step: None,
        on_first_validation=lambda losses: None,
    )
    return Training(trainer, history, masters, model, ways, chosen)


def train(folder: Path, state: Path | None = None, **others: Any) -> History:
    """Run a training of the model in `folder`; the rest goes to `make_training`."""
    with tempfile.TemporaryDirectory() as passing:
        training = make_training(folder, state or Path(passing) / "state", **others)
        training.trainer.run()
        return training.history
