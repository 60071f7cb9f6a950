"""AlpacaEval: a judge compares answers to 805 instructions with a baseline's (Li et al. 2023, tatsu-lab/alpaca_eval).

Asked as by annotator weighted_alpaca_eval_gpt4_turbo of AlpacaEval 2 (evaluators_configs/ of the package): both outputs
once, in an order that is random by instruction, one token m or M, and its log probabilities: the preference is
P(subject's letter) / (P(m) + P(M)). The win rate is raw. A length-controlled one (Dubois et al., arXiv 2404.04475)
needs data of the publisher; the official tool computes it on the answers that are written here for it:

    alpaca_eval --model_outputs data/benchmark/alpaca_eval/model_outputs-fine-tuned.json \
        --annotators_config weighted_alpaca_eval_gpt4_turbo
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.benchmarks.benchmark import (
    Benchmark,
    Figure,
    Found,
    Measurement,
    Message,
    Need,
    Row,
    Settings,
    Source,
    Subject,
)
from stages.instructions.raw_files import read_text, read_values
from stages.model.endpoint import EndpointParams, Reply, Request
from stages.pipeline.errors import UserError
from stages.pipeline.files import write_json

FILES = ("alpaca_eval_gpt4_baseline.json", "alpaca_eval.json")
"""Of the same instructions; outputs in the first are AlpacaEval 2's baseline, in the second AlpacaEval 1's."""

OFFICIAL_PROMPT = "alpaca_eval_clf.txt"
"""Of the package: evaluators_configs/alpaca_eval_clf_gpt4_turbo; used word for word where it lies beside the data."""

PUBLISHED = {"helpful_base": 129, "koala": 156, "oasst": 188, "selfinstruct": 252, "vicuna": 80}
"""Instructions by the set that they come from, column `dataset`."""

MAX_NEW_TOKENS = 2048
"""Of an answer, as in most models_configs of the package."""

TASK = (
    "Two models, called m and M, answered the INSTRUCTION. Which output would most people prefer: the one that does "
    "what was asked, is correct, and helps most? The order in which they stand counts for nothing. "
    "Reply with the name of the better model, m or M, and nothing else: no quotes, no space, no other word."
)
AGAIN = "Reply with the one letter m or M and nothing else."

_PLACES = re.compile(r"\{(instruction|output_1|output_2)\}")
_CHAT = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)\s*<\|im_end\|>", re.DOTALL)


_KEYS = ("dataset", "instruction", "output", "generator")


class Instruction(NamedTuple):
    """One row of the published file."""

    id: str
    dataset: str
    instruction: str
    baseline: str
    """The baseline's output."""
    generator: str
    """Who wrote it."""


class Preference(NamedTuple):
    """For one of two outputs, 0 to 1."""

    value: float
    weighted: bool
    """By log probabilities; False: by the letter alone."""


class AlpacaEval(Benchmark):
    """Answers against a baseline's, as a judge prefers."""

    name = "alpaca_eval"
    title = "AlpacaEval"
    about = (
        "win rate against a baseline's answers to 805 instructions, by a judge's log probabilities, raw; "
        "length-controlled by the official tool on the written model_outputs-<model>.json: "
        "alpaca_eval --model_outputs FILE --annotators_config weighted_alpaca_eval_gpt4_turbo"
    )
    layout = (
        "alpaca_eval_gpt4_baseline.json (or alpaca_eval.json); alpaca_eval_clf.txt of the package for the official "
        "words to the judge"
    )
    source = Source(
        licence="CC BY-NC 4.0",
        where="https://github.com/tatsu-lab/alpaca_eval",
        hub="tatsu-lab/alpaca_eval",
        patterns=FILES,
        note="not for commercial use",
    )
    needs: frozenset[Need] = frozenset({"judge"})
    together = False

    def find(self, folder: Path) -> Found:
        """Instructions by the set they come from."""
        counts = dict(Counter(row.dataset for row in read_instructions(folder)))
        return Found(counts, dict.fromkeys(counts, 0) | PUBLISHED)

    def check(self, folder: Path, wanted: Sequence[str], settings: Settings) -> None:
        """It also needs a judge."""
        from stages.benchmarks.judged import judge_of

        super().check(folder, wanted, settings)
        judge_of(settings, self.name)

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """Answer, write the answers for the official tool, and have them judged."""
        from stages.benchmarks.judged import judge_of

        endpoint = judge_of(settings, self.name)
        rows = chosen(read_instructions(folder), wanted, settings.limit)
        if not rows:
            raise UserError(f"{folder}: holds no instruction of {', '.join(wanted) or 'any set'}")
        prompt = read_prompt(folder / OFFICIAL_PROMPT)
        figures, shown = [], []
        for subject in subjects:
            chats = [[{"role": "user", "content": row.instruction}] for row in rows]
            outputs = [samples[0] for samples in subject.answer(chats, max_new_tokens=MAX_NEW_TOKENS)]
            write_json(into / f"model_outputs-{subject.name}.json", _outputs(rows, outputs, subject.name))
            preferences = judge(rows, outputs, prompt, endpoint, settings.seed)
            protocol = _protocol(rows, preferences, endpoint, prompt is not None)
            about = {"model": subject.name, "template": subject.template, "protocol": protocol}
            figures += _figures(rows, outputs, preferences, self.find(folder), settings, **about)
            shown += _rows(rows, outputs, preferences, subject.name)
        return Measurement(figures, shown)


def read_instructions(folder: Path) -> list[Instruction]:
    """The rows of the publisher's file; none where there is no file.

    Raises:
        UserError: the file is of another format.
    """
    path = next((folder / name for name in FILES if (folder / name).exists()), None)
    if path is None:
        return []
    found = []
    for number, (line, value, broken) in enumerate(read_values(path)):
        if broken or not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in _KEYS):
            problem = broken or f"a row needs {', '.join(_KEYS)} as texts"
            raise UserError(f"{path}:{line}: {problem}; take the file as tatsu-lab/alpaca_eval publishes it")
        found.append(Instruction(str(number), *(value[key] for key in _KEYS)))
    if not found:
        raise UserError(f"{path}: holds no row; take the file as tatsu-lab/alpaca_eval publishes it")
    return found


def chosen(rows: Sequence[Instruction], wanted: Sequence[str], limit: int | None) -> list[Instruction]:
    """Rows of the wanted sets (all, if empty), at most `limit` of each."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.dataset] += 1
        if (not wanted or row.dataset in wanted) and (limit is None or seen[row.dataset] <= limit):
            kept.append(row)
    return kept


def read_prompt(path: Path) -> list[Message] | None:
    """The official words to the judge, as a chat; None where the file is not there.

    Raises:
        UserError: the file is of another format.
    """
    if not path.exists():
        return None
    text = read_text(path)
    messages = [{"role": role, "content": content} for role, content in _CHAT.findall(text)]
    if not messages or {match[1] for match in _PLACES.finditer(text)} != {"instruction", "output_1", "output_2"}:
        raise UserError(
            f"{path}: not the prompt of alpaca_eval: it needs <|im_start|> messages with {{instruction}}, {{output_1}} "
            "and {output_2}; take the package's file, or remove it for our own words"
        )
    return messages


def shown_first(instruction: str, seed: int) -> bool:
    """Whether the subject's output stands first, as m: random, and always the same for the same instruction."""
    return hashlib.sha256(f"{seed}\n{instruction}".encode()).digest()[0] % 2 == 0


def judge(
    rows: Sequence[Instruction],
    outputs: Sequence[str],
    prompt: Sequence[Message] | None,
    endpoint: EndpointParams,
    seed: int,
) -> list[Preference | None]:
    """The judge's preference for each output over the baseline's; equal texts tie without a call, as in the package.

    Raises:
        UserError: calls could not be made; what was answered is kept.
    """
    from stages.benchmarks.judged import ask

    asked = [at for at, row in enumerate(rows) if outputs[at] != row.baseline]
    first = [shown_first(rows[at].instruction, seed) for at in asked]
    requests = []
    for at, ours_first in zip(asked, first, strict=True):
        pair = (outputs[at], rows[at].baseline) if ours_first else (rows[at].baseline, outputs[at])
        messages = _messages(rows[at].instruction, pair, prompt)
        requests.append(Request(messages, 1, {"temperature": 0}, logprobs=True))
    preferences: list[Preference | None] = [Preference(0.5, True)] * len(rows)
    said = ask(requests, endpoint, first_preferred, label="AlpacaEval", again=AGAIN)
    for at, ours_first, (preferred, _) in zip(asked, first, said, strict=True):
        turned = preferred if preferred is None or ours_first else preferred._replace(value=1 - preferred.value)
        preferences[at] = turned
    return preferences


def _messages(instruction: str, pair: tuple[str, str], prompt: Sequence[Message] | None) -> list[Message]:
    if prompt is None:
        from stages.benchmarks.judged import Text, marked

        shown = [Text("INSTRUCTION", instruction), Text("OUTPUT OF m", pair[0]), Text("OUTPUT OF M", pair[1])]
        return marked(shown, TASK)
    texts = {"instruction": instruction, "output_1": pair[0], "output_2": pair[1]}
    return [
        {**message, "content": _PLACES.sub(lambda found: texts[found[1]], message["content"])} for message in prompt
    ]


def first_preferred(reply: Reply) -> Preference | None:
    """For the output shown first, from the alternatives to the reply's first token, else from its letter.

    None where neither m nor M is among them: the package's logprob_parser gives nan.

    >>> first_preferred(Reply("M", "length", [("M", math.log(0.6)), ("m", math.log(0.2)), ("The", -2.0)], 9, 1))
    Preference(value=0.25, weighted=True)
    >>> first_preferred(Reply("m", "stop", None, 9, 1))
    Preference(value=1.0, weighted=False)
    """
    if reply.first_token is None:
        letter = reply.text.strip().strip("\"'`*.()")
        return Preference(float(letter == "m"), False) if letter in ("m", "M") else None
    mass = dict.fromkeys(("m", "M"), 0.0)
    for token, logprob in reply.first_token:
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = sum(mass.values())
    return Preference(round(mass["m"] / total, 9), True) if total > 0 else None


def _protocol(
    rows: Sequence[Instruction],
    preferences: Sequence[Preference | None],
    endpoint: EndpointParams,
    official: bool,
) -> str:
    readable = [preference for preference in preferences if preference is not None]
    weighted = sum(preference.weighted for preference in readable)
    if weighted == len(readable):
        how = "weighted by the log probabilities of m and M"
    elif weighted:
        how = f"weighted by log probabilities in {weighted} of {len(readable)}, else 0 or 1 by the letter"
    else:
        how = "0 or 1 by the letter, as the judge's endpoint gives no log probabilities"
    words = "the official words" if official else "words of our own"
    return (
        f"greedy answers against {', '.join(sorted({row.generator for row in rows}))}, judged once each in random "
        f"order by {endpoint.model} in {words}, {how}; raw, not length-controlled"
    )


def _figures(
    rows: Sequence[Instruction],
    outputs: Sequence[str],
    preferences: Sequence[Preference | None],
    found: Found,
    settings: Settings,
    **about: str,
) -> list[Figure]:
    """The whole, and each set that instructions come from."""
    from stages.benchmarks.judged import figures_of

    figures = []
    sets = sorted({row.dataset for row in rows})
    tasks = [("alpaca_eval", sets, list(found.published)), *((f"alpaca_eval/{name}", [name], [name]) for name in sets)]
    for task, names, whole in tasks:
        own = [at for at, row in enumerate(rows) if row.dataset in names]
        figures += figures_of(
            _values([preferences[at] for at in own], [outputs[at] for at in own]),
            settings,
            task=task,
            run=len(names),
            out_of=len(whole),
            shots=0,
            scope=found.scope(whole, settings.limit) if len(names) == len(whole) else "sample",
            **about,
        )
    return figures


def _values(preferences: Sequence[Preference | None], outputs: Sequence[str]) -> dict[str, list[float]]:
    """What each row gives, by metric; unreadable verdicts are in none but `invalid_fraction`."""
    readable = [preference.value for preference in preferences if preference is not None]
    wins = {"win_rate": readable, "discrete_win_rate": [_discrete(value) for value in readable]} if readable else {}
    return wins | {
        "invalid_fraction": [float(preference is None) for preference in preferences],
        "avg_length": [float(len(output)) for output in outputs],
    }


def _discrete(value: float) -> float:
    return 0.5 if value == 0.5 else float(value > 0.5)


def _outputs(rows: Sequence[Instruction], outputs: Sequence[str], name: str) -> list[dict[str, Any]]:
    """What `alpaca_eval --model_outputs` reads."""
    return [
        {"dataset": row.dataset, "instruction": row.instruction, "output": output, "generator": f"onset-{name}"}
        for row, output in zip(rows, outputs, strict=True)
    ]


def _rows(
    rows: Sequence[Instruction], outputs: Sequence[str], preferences: Sequence[Preference | None], model: str
) -> list[Row]:
    return [
        Row(
            model=model,
            task=f"alpaca_eval/{row.dataset}",
            id=row.id,
            prompt=row.instruction,
            response=output,
            target=row.baseline,
            score=None if preference is None else preference.value,
        )
        for row, output, preference in zip(rows, outputs, preferences, strict=True)
    ]


BENCHMARKS = (AlpacaEval(),)
