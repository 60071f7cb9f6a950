"""Templates in Jinja: a model's own chat template, and a user's file, both in a sandbox.

A template is run on placeholders, one for each text of a row, once for each shape of conversation. What stands around
the placeholders is the template's own text; so text in the data never passes for it. Each row is then rendered once
more as it is, and a row that comes out otherwise (a template that trims, or looks into its texts) is no row for it.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.instructions.instruction import Turn
from stages.instructions.templates import TEMPLATES, NoFormError, Segment, Template, template_hash
from stages.pipeline.errors import UserError
from stages.pipeline.files import read_json

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# Private use (Unicode, 23.5): no template looks for it, and upper or lower case is all one to it.
_OPEN, _CLOSE = "\uf8f0", "\uf8f1"
_PLACEHOLDER = re.compile(f"{_OPEN}([a-z]+[0-9]*){_CLOSE}")

# What may be one control token (<|im_end|>, </s>, [/INST]), else a character.
_WHOLE = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|.", re.DOTALL)


class _Shape(NamedTuple):
    """What decides where a template puts its own text."""

    system: bool
    history: int
    input: bool


class _Skeleton(NamedTuple):
    """A template with a shape of conversation."""

    segments: list[Segment]
    """Those of data hold the name of their text."""
    shows_response: bool
    """False: the response was put at the end by us."""


class JinjaTemplate:
    """A Jinja template with the variables of a chat template (transformers, `apply_chat_template`), and four more.

    `messages` (role, content), `bos_token` and the other special tokens, `add_generation_prompt` (false);
    `instruction`, `input`, `system` and `response` for templates of a single turn. In `messages` an input follows its
    instruction after an empty line. A template that never mentions the response gets it at its end.

    Attributes:
        name: as `format.template` has it.
        hash: hash of source and special tokens.
        end: what closes a response, before the end-of-text token.
    """

    def __init__(self, name: str, source: str, special_tokens: dict[str, str], place: str) -> None:
        """Compile `source`; `place` is named in errors.

        Raises:
            UserError: the template has an error, reaches for what the sandbox forbids, or drops the instruction.
        """
        self.name = name
        self.hash = template_hash(name, source, json.dumps(special_tokens, sort_keys=True))
        self._special_tokens = special_tokens
        try:
            self._compiled = _environment().from_string(source)
        except Exception as error:  # beside Jinja's own: recursion, and what Python finds in the code made of it
            line = error.lineno if isinstance(error, TemplateSyntaxError) else None
            raise UserError(
                f"{place}{f':{line}' if line else ''}: Jinja error: {_in_one_line(error)}; mend the template"
            ) from None
        self._skeleton = cache(self._find_skeleton)
        try:
            lone = self._skeleton(_Shape(False, 0, False)).segments
        except NoFormError as error:
            raise UserError(f"{place}: {error}, even for a lone instruction; mend the template") from None
        close = lone[-1].text if lone[-1].role == "end" else ""
        self.end = close.removesuffix(special_tokens.get("eos_token", "")).rstrip()

    def render(
        self, instruction: str, input: str = "", response: str = "", *, system: str = "", history: Sequence[Turn] = ()
    ) -> list[Segment]:
        """The whole example.

        Raises:
            NoFormError: the template fails on such a row, leaves a text out, or changes it.
        """
        texts = {"system": system, "instruction": instruction, "input": input, "response": response}
        for at, turn in enumerate(history):
            texts[f"user{at}"], texts[f"response{at}"] = turn
        skeleton = self._skeleton(_Shape(bool(system), len(history), bool(input)))
        segments = [
            segment if segment.role in ("template", "end") else Segment(segment.role, texts[segment.text])
            for segment in skeleton.segments
        ]
        whole = self._run(texts, len(history)) + ("" if skeleton.shows_response else response)
        if "".join(segment.text for segment in segments).rstrip() != whole.rstrip():
            raise NoFormError("the text would be changed by it")
        return segments

    def _run(self, texts: dict[str, str], history: int) -> str:
        """What the template makes of a row."""
        user = texts["instruction"] + (f"\n\n{texts['input']}" if texts["input"] else "")
        messages = [{"role": "system", "content": texts["system"]}] if texts["system"] else []
        for at in range(history):
            messages.append({"role": "user", "content": texts[f"user{at}"]})
            messages.append({"role": "assistant", "content": texts[f"response{at}"]})
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": texts["response"]}]
        names = ("system", "instruction", "input", "response")
        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **{name: texts[name] for name in names},
                **self._special_tokens,
            )
        except Exception as error:  # a template may raise whatever its expressions raise
            raise NoFormError(f"it fails: {_in_one_line(error)}") from None

    def _find_skeleton(self, shape: _Shape) -> _Skeleton:
        names = ["system"] if shape.system else []
        for at in range(shape.history):
            names += [f"user{at}", f"response{at}"]
        names += ["instruction", "input", "response"] if shape.input else ["instruction", "response"]
        texts = dict.fromkeys(("system", "instruction", "input", "response"), "")
        whole = self._run(texts | {name: f"{_OPEN}{name}{_CLOSE}" for name in names}, shape.history)
        pieces = _PLACEHOLDER.split(whole)
        found = pieces[1::2]
        if found == names[:-1] and not shape.history:
            return _Skeleton(_segments([*pieces, "response", ""]), shows_response=False)
        if found != names:
            missing = [name for name in names if name not in found]
            what = "no form for " + _in_words(missing[0]) if missing else "it shows texts twice or out of order"
            raise NoFormError(what)
        return _Skeleton(_segments(pieces), shows_response=True)


def _segments(pieces: list[str]) -> list[Segment]:
    """From template text and names in turn, the last name being the response's.

    What closes a response is what follows the last one, without white space at its end, as far as it follows the others
    too; white space is left to the template, so that the last token is the one that ends the response.
    """
    close = pieces[-1].rstrip()
    segments: list[Segment] = []
    for at, piece in enumerate(pieces[:-1]):
        if at % 2:
            segments.append(Segment("response" if piece.startswith("response") else "user", piece))
            continue
        if segments and segments[-1].role == "response":
            end = _common_start(piece, close)
            if end:
                segments.append(Segment("end", end))
            piece = piece.removeprefix(end)
        if piece:
            segments.append(Segment("template", piece))
    return [*segments, Segment("end", close)] if close else segments


def _common_start(a: str, b: str) -> str:
    """What both begin with, no control token cut in two.

    >>> _common_start("<|end|>\\n<|user|>", "<|end|>\\n<|endoftext|>")
    '<|end|>\\n'
    """
    pairs = zip(_WHOLE.findall(a), _WHOLE.findall(b), strict=False)
    return "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _in_words(name: str) -> str:
    if name[-1].isdigit():
        return "several turns"
    return {"system": "a system message"}.get(name, f"an {name}" if name[0] in "aeiou" else f"a {name}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Where Jinja's own would show nothing in place of what is forbidden, this one is an error."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to '{attribute}' of a {type(obj).__name__} is forbidden")


class _Generation(Extension):
    """`{% generation %}` around what an assistant says, as transformers has it; the text in it counts as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        scope = nodes.Scope(lineno=next(parser.stream).lineno)
        scope.body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return scope


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers' chat templates have it (utils/chat_template_utils.py), without the date, which changes daily."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment


def find_template(name: str, base_model: Path, folder: Path) -> Template:
    """The template that `format.template` names.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name == "model":
        return _own_template(base_model)
    path = folder / name
    known = [*TEMPLATES, "model", *sorted(path.name for path in folder.glob("*.jinja"))]
    if name not in known:
        raise UserError(f"format.template: no template '{name}'; known: {', '.join(known)}; yours go into {folder}")
    return JinjaTemplate(name, _read_source(path), _special_tokens(base_model), str(path))


def _own_template(base_model: Path) -> JinjaTemplate:
    path = base_model / "chat_template.jinja"
    source: Any = None
    if path.exists():
        source = _read_source(path)
    else:
        path = base_model / "tokenizer_config.json"
        source = (read_json(path) if path.exists() else {}).get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not isinstance(source, str) or not source:
        raise UserError(f"format.template: {base_model} has no chat template; choose {', '.join(TEMPLATES)}")
    return JinjaTemplate("model", source, _special_tokens(base_model), str(path))


def _read_source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert the file") from None


def _special_tokens(base_model: Path) -> dict[str, str]:
    """Text of each special token that the tokenizer's settings name."""
    path = base_model / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    tokens = {name: settings.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if text}
