"""Many short answers at once: continuous batching over slots of a static KV cache.

Prompts wait longest first. Some are read together in one row; each then has a slot, and every step writes one token of
each answer. An answer that ends frees its slot, which the next prompt takes.

Matrix products round by their number of rows, so that number is always the same (`ROWS` tokens of prompts, `TILE`
answers): an answer is the same to the last bit whatever is answered beside it, in what order, and after how many
interruptions.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.model import slots as slots_module
from stages.model.attention import make_blocks
from stages.model.decoding import NO_STOPS, Completion, Decoding, Job, OnAnswer, Stops
from stages.model.sampling import choose, draws_of
from stages.model.slots import WIDTH_STEP, Slots, UnsupportedModelError

TILE = 128
"""Answers that a pass takes a step. On a CPU one of few takes as long as the weights take to be read; with more, what
comes with every pass is shared by more, until only a few long answers are left."""
ROWS = 768
"""Tokens of prompts that a pass reads; a longer prompt is read alone, in a multiple of WIDTH_STEP."""


class _Answer:
    """An answer at work."""

    def __init__(self, number: int, job: Job, how: Decoding, room: int) -> None:
        self.number = number
        self.prompt = job.prompt
        self.tokens: list[int] = []
        self.most = min(how.max_new_tokens, room - len(job.prompt))
        self.draws = draws_of(job.seed, self.most) if how.temperature else None


class Engine:
    """Answers jobs with one model; `batch_size` is the number of slots.

    Raises:
        UnsupportedModelError: the model's attention is of another kind; when it is first used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        how: Decoding,
        ends: Collection[int],
        *,
        batch_size: int,
        room: int,
        stops: Stops = NO_STOPS,
    ) -> None:
        """`ends` are the tokens that end an answer, `room` the most tokens of prompt and answer together."""
        model.eval()
        model.set_attn_implementation(slots_module.NAME)
        self._model: Any = model
        self._how, self._ends, self._room, self._stops = how, frozenset(ends), room, stops
        self._slots = Slots(batch_size, room + 1, model.device)
        self._answers: list[_Answer] = []
        self._next = torch.zeros(batch_size, dtype=torch.int64)
        self._seen = torch.zeros(batch_size, room + 1, dtype=torch.int64) if how.repetition_penalty != 1 else None

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], on_answer: OnAnswer, on_step: Callable[[], None]) -> None:
        """Answer all jobs; `on_answer` hears of each as it ends, `on_step` is called between passes."""
        order = sorted(range(len(jobs)), key=lambda at: (-len(jobs[at].prompt), at))
        waiting = deque(_Answer(at, jobs[at], self._how, self._room) for at in order)
        while waiting or self._answers:
            while chosen := self._admissible(waiting):
                on_step()
                self._read([waiting.popleft() for _ in range(chosen)])
                self._finish(on_answer)
            if self._answers:
                on_step()
                self._step()
                self._finish(on_answer)

    def _admissible(self, waiting: Sequence[_Answer]) -> int:
        """How many of those that wait are to be read now: a full row, or half of the slots; else none, but at rest."""
        free = self._slots.count - len(self._answers)
        tokens = count = 0
        for answer in waiting:
            tokens += len(answer.prompt)
            if count == free or (count and tokens > ROWS):
                break
            count += 1
        enough = count == len(waiting) or tokens > ROWS or 2 * count >= self._slots.count
        return count if enough or not self._answers else 0

    def _read(self, answers: Sequence[_Answer]) -> None:
        """Read prompts into the next slots, in one row, and choose the first token of each."""
        first = len(self._answers)
        numbers = np.repeat(np.arange(len(answers)), [len(answer.prompt) for answer in answers])
        total = len(numbers)
        width = ROWS if total <= ROWS else -(-total // WIDTH_STEP) * WIDTH_STEP
        tokens, slot = torch.zeros(2, width, dtype=torch.int64)
        slot.fill_(-1)
        positions = torch.arange(width) - total
        positions %= WIDTH_STEP  # padding: short examples of their own
        tokens[:total] = torch.tensor([token for answer in answers for token in answer.prompt])
        slot[:total] = torch.from_numpy(numbers + first)
        lengths = torch.tensor([len(answer.prompt) for answer in answers])
        positions[:total] = torch.cat([torch.arange(int(length)) for length in lengths])
        place = positions[None].to(self._model.device)
        self._slots.plan_prompts(make_blocks(place), slot, positions)
        self._slots.used[first : first + len(answers)] = lengths
        lasts = torch.cat([lengths.cumsum(0) - 1, torch.zeros(TILE, dtype=torch.int64)])[: max(TILE, len(answers))]
        logits = self._logits(tokens[None], place, lasts)
        self._answers += answers
        if self._seen is not None:
            for at, answer in enumerate(answers, first):
                self._seen[at] = answer.prompt[0]
                self._seen[at, : len(answer.prompt)] = torch.tensor(answer.prompt)
        self._choose(logits[0, : len(answers)], first)

    def _step(self) -> None:
        """One more token of every answer."""
        for start in range(0, len(self._answers), TILE):
            active = min(TILE, len(self._answers) - start)
            tokens, places = torch.zeros(2, TILE, 1, dtype=torch.int64)
            tokens[:active, 0] = self._next[start : start + active]
            places[:active, 0] = self._slots.used[start : start + active]
            self._slots.plan_step(start, active)
            logits = self._logits(tokens, places.to(self._model.device), 1)
            self._slots.used[start : start + active] += 1
            self._choose(logits[:active, 0], start)

    def _logits(self, tokens: torch.Tensor, places: torch.Tensor, keep: Any) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            input_ids=tokens.to(self._model.device),
            position_ids=places,
            use_cache=False,
            logits_to_keep=keep,
            slots=self._slots,
        ).logits
        if self._slots.layers != self._model.config.get_text_config().num_hidden_layers:
            raise UnsupportedModelError("its layers do not all attend in the usual way")
        return logits

    def _choose(self, logits: torch.Tensor, start: int) -> None:
        """Choose the next token of the answers from `start` on."""
        answers = self._answers[start : start + len(logits)]
        stop = start + len(answers)
        seen = (self._next if self._seen is None else self._seen)[start:stop].to(logits.device)
        draws = [0.0 if a.draws is None else float(a.draws[len(a.tokens)]) for a in answers]
        chosen = choose(logits, seen, torch.tensor(draws, dtype=torch.float64, device=logits.device), self._how).cpu()
        self._next[start:stop] = chosen
        for at, (answer, token) in enumerate(zip(answers, chosen.tolist(), strict=True), start):
            answer.tokens.append(token)
            if self._seen is not None:
                self._seen[at, len(answer.prompt) + len(answer.tokens) - 1] = token

    def _finish(self, on_answer: OnAnswer) -> None:
        """Tell of the answers that have ended, and let the last ones take their slots: those at work stay in front."""
        for at in reversed(range(len(self._answers))):
            answer = self._answers[at]
            ended = answer.tokens[-1] in self._ends
            stopped = ended or (bool(self._stops.texts) and self._stops.met(answer.tokens))
            if not stopped and len(answer.tokens) < answer.most:
                continue
            tokens = answer.tokens[:-1] if ended else answer.tokens
            on_answer(answer.number, Completion(tokens, "stop" if stopped else "length"))
            last = self._answers.pop()
            if last is not answer:
                self._answers[at] = last
                self._slots.move(len(self._answers), at)
                self._next[at] = self._next[len(self._answers)]
                if self._seen is not None:
                    self._seen[at] = self._seen[len(self._answers)]
