"""A talk with a model in the terminal: the template of its training, and answers as they are written."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.instructions.instruction import Turn
from stages.instructions.jinja_templates import find_template
from stages.instructions.templates import NoFormError, Segment
from stages.model.checkpoint import load_model
from stages.model.decoding import Decoding, end_tokens
from stages.model.sampling import choose, draws_of, seed_of
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json
from stages.tokens.tokenizer import Tokenizer

COMMANDS = "/base: the base model's answer to the last message; /reset: begin anew; /quit or Ctrl-D: end"


class Chat:
    """A conversation; `folders` has the models by name, the first of which is talked with."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        templates: Path,
        how: Decoding,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Nothing is loaded before it is asked.

        Raises:
            UserError: the template of the training is not to be found, or has changed since.
        """
        self._folders, self._how, self._seed, self._dtype, self._device = folders, how, seed, dtype, device
        self.first, *others = folders
        checkpoint = folders[self.first]
        trained_with = read_json(checkpoint / "onset.json")["template"]
        self.template = find_template(trained_with["name"], folders[others[0]] if others else checkpoint, templates)
        if self.template.hash != trained_with["hash"]:
            raise UserError(
                f"{checkpoint}: trained with another text of template {self.template.name}; run `dvc repro`"
            )
        self._tokenizer = Tokenizer(checkpoint)
        self._models: dict[str, PreTrainedModel] = {}
        self.turns: list[Turn] = []

    def reset(self) -> None:
        """Forget what was said."""
        self.turns.clear()

    def say(self, message: str) -> Iterator[str]:
        """Pieces of the first model's answer as they come; the turn is kept once it is whole."""
        pieces = []
        for piece in self.answer(self.first, message, self.turns):
            pieces.append(piece)
            yield piece
        self.turns.append(Turn(message, "".join(pieces)))

    def answer(self, name: str, message: str, turns: Sequence[Turn]) -> Iterator[str]:
        """Pieces of an answer by the model called `name`."""
        prompt = self._tokenizer.encode_segments(self._render(message, turns))
        end, written, shown = self.template.end, "", 0
        for tokens in self._tokens(name, prompt):
            if self._tokenizer.is_whole(tokens):
                written = self._tokenizer.decode(tokens).lstrip()
                # What may be the beginning of the closing text waits until that is clear.
                sure = len(written) - max(
                    (n for n in range(len(end) + 1) if n and written.endswith(end[:n])), default=0
                )
                if sure > shown:
                    yield written[shown:sure]
                    shown = sure
        if rest := (written.removesuffix(end) if end else written)[shown:]:
            yield rest

    def _render(self, message: str, turns: Sequence[Turn]) -> list[Segment]:
        try:
            segments = self.template.render(message, history=turns)
        except NoFormError:
            if not turns:
                raise UserError(f"chat: template {self.template.name} has no form for this message") from None
            segments = self.template.render(message)  # such as alpaca: every message stands for itself
        last = max(at for at, segment in enumerate(segments) if segment.role == "response")
        return segments[:last]

    @torch.inference_mode()
    def _tokens(self, name: str, prompt: Sequence[int]) -> Iterator[list[int]]:
        """The answer so far, after each token."""
        if name not in self._models:
            self._models[name] = load_model(self._folders[name], self._dtype, self._device)
        model: Any = self._models[name]
        ends = end_tokens(model, self._tokenizer.end_of_text)
        draws = draws_of(seed_of(self._seed, prompt, 0), self._how.max_new_tokens)
        seen = torch.tensor([list(prompt)], device=self._device)
        fed, cache = seen, None
        answer: list[int] = []
        for draw in draws:
            out = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            chance = torch.tensor([draw], dtype=torch.float64, device=self._device)
            fed = choose(out.logits[:, -1], seen, chance, self._how)[:, None]
            token = int(fed)
            if token in ends:
                return
            answer.append(token)
            seen = torch.cat([seen, fed], dim=1)
            yield answer


def talk(chat: Chat) -> None:
    """Read messages from the terminal until it ends."""
    print(f"Talking with the {chat.first} model, template {chat.template.name}. {COMMANDS}")
    last = None
    while (message := _read()) is not None:
        if message in ("/quit", "/exit"):
            return
        if message == "/reset":
            chat.reset()
            last = None
            print("(begun anew)")
        elif message == "/base":
            if last is None:
                print("(say something first)")
            else:
                _show("base", chat.answer("base", last, chat.turns[:-1]))
        elif message.startswith("/"):
            print(f"({COMMANDS})")
        elif message:
            last = message
            _show(chat.first, chat.say(message))


def _read() -> str | None:
    try:
        return input("\nyou> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _show(name: str, pieces: Iterator[str]) -> None:
    """Print an answer as it comes; Ctrl-C ends the answer alone."""
    print(f"{name}> ", end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print()
