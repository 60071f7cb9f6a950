"""Subjects that know the answers, or have them shuffled: what every scorer must tell apart."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from stages.benchmarks.benchmark import Message

Gold = Callable[[Any], Any]
"""From a row to the right choice's number or text, several of them in a list, or the right answer."""


class OracleLM(LM):  # type: ignore[misc]
    """Likelihoods and texts from the rows themselves by `gold`; shuffled, every row gets another row's answer."""

    def __init__(self, gold: Gold | None, *, shuffled: bool, seed: int) -> None:
        super().__init__()
        self._gold, self._shuffled, self._seed = gold, shuffled, seed

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """0 for the right choice, -10 for others."""
        golds = self._golds(requests)
        found = []
        for request in requests:
            right = golds[self._key(request)]
            told = [right] if not isinstance(right, list) else right
            is_gold = any(
                request.idx == one if isinstance(one, int) else str(request.args[1]).strip() == str(one).strip()
                for one in told
            )
            found.append((0.0 if is_gold else -10.0, is_gold))
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """No task here asks for it."""
        return [-1.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The right answer; the first of several."""
        golds = self._golds(requests)
        answers = []
        for request in requests:
            right = golds[self._key(request)]
            answers.append(str(right[0] if isinstance(right, list) else right))
        return answers

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """Messages one after the other."""
        return "\n".join(message["content"] for message in chat_history)

    @property
    def tokenizer_name(self) -> str:
        """None in particular."""
        return "oracle"

    def _key(self, request: Instance) -> tuple[str, int]:
        return str(request.task_name), int(request.doc_id or 0)

    def _golds(self, requests: Sequence[Instance]) -> dict[tuple[str, int], Any]:
        assert self._gold is not None
        golds = {self._key(request): self._gold(request.doc) for request in requests}
        if self._shuffled:
            for name in {task for task, _ in golds}:
                keys = [key for key in golds if key[0] == name]
                values = [golds[key] for key in keys]
                random.Random(self._seed).shuffle(values)
                golds.update(zip(keys, values, strict=True))
        return golds


class OracleSubject:
    """A subject whose answers are gold, or another row's gold.

    For tasks of lm-eval `gold` takes a row (such as `lambda doc: doc["answer"]`); for `answer` and `complete`, `reply`
    takes what was asked.
    """

    name = "fine-tuned"

    def __init__(
        self,
        gold: Gold | None = None,
        *,
        reply: Callable[[Any], str] | None = None,
        shuffled: bool = False,
        template: str = "none",
        seed: int = 0,
    ) -> None:
        self.lm = OracleLM(gold, shuffled=shuffled, seed=seed)
        self.template = template
        self.asked: list[Any] = []
        self._reply, self._shuffled, self._seed = reply, shuffled, seed

    def answer(self, chats: Sequence[Sequence[Message]], **how: Any) -> list[list[str]]:
        """The reply to each chat, as often as samples are wanted."""
        return self._replies(list(chats), how)

    def complete(self, prompts: Sequence[str], **how: Any) -> list[list[str]]:
        """The reply to each prompt, as often as samples are wanted."""
        return self._replies(list(prompts), how)

    def _replies(self, asked: list[Any], how: dict[str, Any]) -> list[list[str]]:
        assert self._reply is not None
        self.asked += asked
        replies = [self._reply(one) for one in asked]
        if self._shuffled:
            random.Random(self._seed).shuffle(replies)
        return [[reply] * int(how.get("num_samples", 1)) for reply in replies]
