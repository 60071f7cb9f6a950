"""Where the loss lies and where it does not, whatever the conversation, and what truncation leaves."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as OwnTokenizer

from stages.instructions.instruction import Instruction, Turn
from stages.instructions.prompts import make_prompt
from stages.instructions.templates import TEMPLATES, Segment, Template
from stages.tokens.arrays import collate
from stages.tokens.labels import IGNORE_INDEX, Examples, join, label
from stages.tokens.tokenizer import Tokenizer
from tests.tokens.making import FORMS, SCRIPTS, WHITE, encode_all, make_byte_level, make_other, own_of, without_byte

ENDLESS = 100_000

texts = st.one_of(
    st.sampled_from(["Add 1 and 2.", "It is 3.", "def f(x):\n    return x"]),
    st.sampled_from(FORMS),
    st.text(WHITE + SCRIPTS + "<|im_end>\x00\x04.", min_size=1, max_size=12),
)
conversations = st.builds(
    Instruction,
    instruction=texts,
    response=texts,
    input=st.just("") | texts,
    system=st.just("") | texts,
    history=st.lists(st.builds(Turn, texts, texts), max_size=3).map(tuple),
)
templates = st.sampled_from([TEMPLATES["chatml"], TEMPLATES["phi3"]])
rendered = st.builds(lambda row, template: make_prompt(row, template).segments, conversations, templates)


@pytest.fixture(scope="module", params=["smollm", "qwen", "llama2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = make_other if request.param == "llama2" else make_byte_level
    return make(tmp_path_factory.mktemp("tokenizers") / request.param, request.param)


made, own_of_cached = cache(Tokenizer), cache(own_of)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_byte_level(tmp_path_factory.mktemp("tokenizers") / "smollm", "smollm"))


@pytest.fixture(scope="module")
def smollm_lacking_4(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizers")
    return Tokenizer(without_byte(make_byte_level(folder / "whole", "smollm"), folder / "lacking", 4))


def parts(examples: Examples) -> list[tuple[list[int], list[bool]]]:
    """Tokens of each example, and whether they belong to a response."""
    spans = [slice(*span) for span in pairwise(examples.offsets)]
    return [(examples.tokens[span].tolist(), examples.in_response[span].tolist()) for span in spans]


def naive_parts(segments: Sequence[Segment], tokenizer: Tokenizer, own: OwnTokenizer) -> tuple[list[int], list[bool]]:
    """Through the model's own tokenizer, one stretch of plain text at a time."""
    control = re.compile("(" + "|".join(map(re.escape, tokenizer.control_tokens)) + ")")
    tokens: list[int] = []
    flags: list[bool] = []
    for in_response, side in groupby(segments, lambda segment: segment.role in ("response", "end")):
        pieces: list[tuple[bool, str]] = []
        for role, text in side:
            if role in ("user", "response"):
                pieces.append((False, text))
            else:
                pieces += [(piece in tokenizer.control_tokens, piece) for piece in control.split(text)]
        for is_control, run in groupby(pieces, lambda piece: piece[0]):
            texts = [text for _, text in run]
            ids = (
                [tokenizer.control_tokens[text] for text in texts]
                if is_control
                else encode_all(own, ["".join(texts)])[0]
            )
            tokens += ids
            flags += [in_response] * len(ids)
    return tokens, flags


@given(examples=st.lists(rendered, min_size=1, max_size=6))
@settings(deadline=None)
def test_examples_together_are_tokenized_as_each_alone(folder: Path, examples: list[list[Segment]]) -> None:
    tokenizer, own = made(folder), own_of_cached(folder)
    found = parts(label(examples, tokenizer, ENDLESS))
    end = tokenizer.end_of_text
    for (tokens, flags), segments in zip(found, examples, strict=True):
        naive_tokens, naive_flags = naive_parts(segments, tokenizer, own)
        closed = naive_tokens[-1] == end
        assert tokens == naive_tokens + [end] * (not closed)
        assert flags == naive_flags + [True] * (not closed)


@given(row=conversations, template=templates)
@settings(deadline=None, max_examples=300)
def test_the_loss_lies_on_every_response_and_nowhere_else(
    smollm: Tokenizer, row: Instruction, template: Template
) -> None:
    segments = make_prompt(row, template).segments
    examples = label([segments], smollm, ENDLESS)
    arrays = collate(examples, np.array([0]), ["a"], end_of_text=smollm.end_of_text, mask_instruction=True)
    targets, labels = arrays.next_ids[0].tolist(), arrays.labels[0].tolist()
    assert arrays.input_ids[0, 1:].tolist() == targets[:-1]
    trained, read = [], smollm.token(int(arrays.input_ids[0, 0]))
    for has_loss, run in groupby(zip(targets, labels, strict=True), lambda pair: pair[1] != IGNORE_INDEX):
        pairs = list(run)
        text = smollm.decode([target for target, _ in pairs])
        if has_loss:
            assert all(target == wanted for target, wanted in pairs)
            trained.append(text)
        else:
            read += text
    expected = [turn.response + template.end for turn in row.history] + [row.response + template.end]
    expected[-1] += "" if template.end == "<|im_end|>" else "<|im_end|>"
    assert trained == expected
    assert read == "".join(text for role, text in segments if role in ("template", "user"))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("input", ["", "1 2"])
def test_end_of_text_closes_an_example_once(smollm: Tokenizer, template: str, input: str) -> None:
    examples = label(
        [TEMPLATES[template].render("Add.", input, response) for response in ("It is 3.", "")], smollm, 256
    )
    for (tokens, flags), response in zip(parts(examples), ("It is 3.", ""), strict=True):
        trained = [token for token, flag in zip(tokens, flags, strict=True) if flag]
        assert trained[-1] == smollm.end_of_text
        assert trained.count(smollm.end_of_text) == 1
        end = TEMPLATES[template].end
        assert smollm.decode(trained[:-1]) == response + ("" if end == "<|im_end|>" else end)


@given(examples=st.lists(rendered, min_size=1, max_size=4), max_seq_len=st.integers(1, 200))
@settings(deadline=None, max_examples=200)
def test_truncation_keeps_what_fits_and_an_end(folder: Path, examples: list[list[Segment]], max_seq_len: int) -> None:
    tokenizer = made(folder)
    end = tokenizer.end_of_text
    whole, cut = label(examples, tokenizer, ENDLESS), label(examples, tokenizer, max_seq_len)
    assert not whole.truncated.any()
    assert whole.kept.tolist() == list(range(len(examples)))
    left = dict(zip(cut.kept.tolist(), zip(parts(cut), cut.truncated, strict=True), strict=True))
    for number, (tokens, flags) in enumerate(parts(whole)):
        fits = len(tokens) <= max_seq_len + 1
        # The prompt, one token of the response and end-of-text; of these the last is a target only.
        assert (number in left) == (fits or flags.index(True) + 2 <= max_seq_len + 1)
        if number not in left:
            continue
        (kept_tokens, kept_flags), truncated = left[number]
        size = len(kept_tokens)
        assert truncated == (not fits)
        if fits:
            assert (kept_tokens, kept_flags) == (tokens, flags)
            continue
        assert size <= max_seq_len + 1
        assert (kept_tokens[-1], kept_flags[-1]) == (end, True)
        assert any(kept_flags[:-1])
        assert kept_tokens[-2] != end
        assert (kept_tokens[:-1], kept_flags[:-1]) == (tokens[: size - 1], flags[: size - 1])
        # Nothing of a response is lost that there was room for.
        closed_by_its_own = size <= max_seq_len and tokens[size - 1] == end
        assert sum(flags[:max_seq_len]) == sum(kept_flags[:-1]) + closed_by_its_own
    assert cut.lengths.max(initial=0) <= max_seq_len


@given(segments=rendered)
@settings(deadline=None)
def test_the_prompt_of_an_answer_is_the_one_of_training(folder: Path, segments: list[Segment]) -> None:
    """stages/model/answers.py asks with all that stands before the last response."""
    tokenizer = made(folder)
    last = max(at for at, segment in enumerate(segments) if segment.role == "response")
    asked = tokenizer.encode_segments(segments[:last])
    ((tokens, flags),) = parts(label([segments], tokenizer, ENDLESS))
    assert tokens[: len(asked)] == asked
    assert not flags[len(asked) - 1]
    assert all(flags[len(asked) :])


def test_an_end_of_text_of_the_prompt_closes_nothing(smollm: Tokenizer) -> None:
    examples = label([[Segment("template", "<|im_start|><|im_end|>"), Segment("response", "")]], smollm, 8)
    start, end = smollm.control_tokens["<|im_start|>"], smollm.end_of_text
    assert parts(examples) == [([start, end, end], [False, False, True])]


@given(batches=st.lists(st.lists(rendered, max_size=3), min_size=1, max_size=3), max_seq_len=st.integers(20, 80))
@settings(deadline=None, max_examples=50)
def test_batches_joined_are_one(smollm: Tokenizer, batches: list[list[list[Segment]]], max_seq_len: int) -> None:
    joined = join([label(batch, smollm, max_seq_len) for batch in batches], [len(batch) for batch in batches])
    together = label([segments for batch in batches for segments in batch], smollm, max_seq_len)
    for name, ours, expected in zip(Examples._fields, joined, together, strict=True):
        assert ours.tolist() == expected.tolist(), name
        assert ours.dtype == expected.dtype


def test_what_has_no_token_to_predict_from_is_dropped(smollm_lacking_4: Tokenizer) -> None:
    nothing, something = [Segment("user", "\u0004"), Segment("response", "\u0004")], [Segment("user", "a")]
    lone_end = [Segment("response", ""), Segment("end", "<|im_end|>")]
    examples = label([nothing, something, lone_end, nothing, nothing, something], smollm_lacking_4, 8)
    assert examples.kept.tolist() == [1, 5]
    a, end = smollm_lacking_4.encode("a")[0], smollm_lacking_4.end_of_text
    assert parts(examples) == [([a, end], [False, True])] * 2
