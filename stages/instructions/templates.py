"""Prompt templates: how an instruction is shown to the model. One object from format to judge."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Literal, NamedTuple, Protocol

from stages.instructions.instruction import Turn

Role = Literal["template", "user", "response", "end"]


class Segment(NamedTuple):
    """A stretch of a rendered example.

    `template` and `end` are the template's own text, in which control tokens such as `<|im_start|>` count as such;
    `user` and `response` are data, always plain text. The loss lies on every `response` and on the `end` after it.
    """

    role: Role
    text: str


class NoFormError(Exception):
    """A template has no form for a row; the text says for what."""


class Template(Protocol):
    """A prompt format."""

    @property
    def name(self) -> str:
        """As `format.template` has it."""

    @property
    def hash(self) -> str:
        """Hash of everything that shapes a prompt; artifacts carry it so that a mismatch downstream is an error."""

    @property
    def end(self) -> str:
        """What closes a response, before end-of-text."""

    def render(
        self, instruction: str, input: str = "", response: str = "", *, system: str = "", history: Sequence[Turn] = ()
    ) -> list[Segment]:
        """The whole example; its segments' texts, joined, are what the model sees.

        Raises:
            NoFormError: the template cannot show a system message, several turns, or this text.
        """


@dataclass(frozen=True)
class BuiltInTemplate:
    """A template as text; `{instruction}`, `{input}` and `{system}` stand for the data."""

    name: str
    with_input: str
    without_input: str
    end: str
    system: str = ""
    """What stands before all turns where there is a system message; empty: there is no form for one."""
    between: str | None = None
    """Between the end of a response and the next turn; None: there is no form for several turns."""

    @property
    def hash(self) -> str:
        """Hash of all fields."""
        return template_hash(*(repr(value) for value in astuple(self)))

    def render(
        self, instruction: str, input: str = "", response: str = "", *, system: str = "", history: Sequence[Turn] = ()
    ) -> list[Segment]:
        """The whole example.

        >>> [s.role for s in TEMPLATES["chatml"].render("Add.", "1 2", "3")]
        ['template', 'user', 'template', 'user', 'template', 'response', 'end']
        """
        segments: list[Segment] = []
        if system:
            if not self.system:
                raise NoFormError("no form for a system message")
            segments += _fill(self.system, {"{system}": system})
        for turn in history:
            if self.between is None:
                raise NoFormError("no form for several turns")
            segments += _fill(self.without_input, {"{instruction}": turn.user})
            segments += [Segment("response", turn.response), Segment("end", self.end)]
            segments.append(Segment("template", self.between))
        fields = {"{instruction}": instruction, "{input}": input}
        segments += _fill(self.with_input if input else self.without_input, fields)
        segments.append(Segment("response", response))
        if self.end:
            segments.append(Segment("end", self.end))
        return segments


@cache
def _pieces(form: str) -> list[str]:
    return [piece for piece in re.split(r"(\{instruction\}|\{input\}|\{system\})", form) if piece]


def _fill(form: str, fields: dict[str, str]) -> list[Segment]:
    return [
        Segment("user", fields[piece]) if piece in fields else Segment("template", piece) for piece in _pieces(form)
    ]


def template_hash(*parts: str) -> str:
    """16 hex digits over everything that shapes a prompt."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


ALPACA_PREAMBLE = "Below is an instruction that describes a task"
ALPACA_REQUEST = "Write a response that appropriately completes the request."

TEMPLATES = {
    template.name: template
    for template in (
        # tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT; the newline after "### Response:" as Raschka, ch. 7.
        BuiltInTemplate(
            name="alpaca",
            with_input=f"{ALPACA_PREAMBLE}, paired with an input that provides further context. {ALPACA_REQUEST}\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            without_input=f"{ALPACA_PREAMBLE}. {ALPACA_REQUEST}\n\n"
            "### Instruction:\n{instruction}\n\n### Response:\n",
            end="",
        ),
        # microsoft/Phi-3-mini-4k-instruct, model card, "Chat Format".
        BuiltInTemplate(
            name="phi3",
            with_input="<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
            without_input="<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
            end="<|end|>",
            system="<|system|>\n{system}<|end|>\n",
            between="\n",
        ),
        # openai/openai-python v0.28, chatml.md.
        BuiltInTemplate(
            name="chatml",
            with_input="<|im_start|>user\n{instruction}\n\n{input}<|im_end|>\n<|im_start|>assistant\n",
            without_input="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
            end="<|im_end|>",
            system="<|im_start|>system\n{system}<|im_end|>\n",
            between="\n",
        ),
    )
}
