"""Prompt templates: how an instruction is shown to the model. One object from format to judge."""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from stages.pipeline.errors import UserError

Role = Literal["template", "user", "response", "end"]


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered example.

    `template` and `end` are the template's own text, in which control tokens such as `<|im_start|>` count as such;
    `user` and `response` are data, always plain text. The loss lies on `response` and `end`.
    """

    role: Role
    text: str


@dataclass(frozen=True)
class Template:
    """A prompt format; `{instruction}` and `{input}` stand for the data."""

    name: str
    with_input: str
    without_input: str
    end: str
    """What closes the response, before end-of-text."""

    @property
    def hash(self) -> str:
        """Hash of everything that shapes a prompt; artifacts carry it so that a mismatch downstream is an error."""
        content = "\0".join([self.name, self.with_input, self.without_input, self.end])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def render(self, instruction: str, input: str, response: str) -> list[Segment]:
        """The whole example; its segments' texts, joined, are what the model sees.

        >>> [s.role for s in TEMPLATES["chatml"].render("Add.", "1 2", "3")]
        ['template', 'user', 'template', 'user', 'template', 'response', 'end']
        """
        fields = {"{instruction}": instruction, "{input}": input}
        pieces = re.split(r"(\{instruction\}|\{input\})", self.with_input if input else self.without_input)
        prompt = [Segment("user", fields[p]) if p in fields else Segment("template", p) for p in pieces if p]
        return [*prompt, Segment("response", response), *([Segment("end", self.end)] if self.end else [])]


ALPACA_PREAMBLE = "Below is an instruction that describes a task"
ALPACA_REQUEST = "Write a response that appropriately completes the request."

TEMPLATES = {
    template.name: template
    for template in (
        # tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT; the newline after "### Response:" as Raschka, ch. 7.
        Template(
            name="alpaca",
            with_input=f"{ALPACA_PREAMBLE}, paired with an input that provides further context. {ALPACA_REQUEST}\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            without_input=f"{ALPACA_PREAMBLE}. {ALPACA_REQUEST}\n\n"
            "### Instruction:\n{instruction}\n\n### Response:\n",
            end="",
        ),
        # microsoft/Phi-3-mini-4k-instruct, model card, "Chat Format".
        Template(
            name="phi3",
            with_input="<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
            without_input="<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
            end="<|end|>",
        ),
        # openai/openai-python v0.28, chatml.md.
        Template(
            name="chatml",
            with_input="<|im_start|>user\n{instruction}\n\n{input}<|im_end|>\n<|im_start|>assistant\n",
            without_input="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
            end="<|im_end|>",
        ),
    )
}


def find_template(name: str) -> Template:
    """The template called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in TEMPLATES:
        raise UserError(f"format.template: no template '{name}'; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
