"""Tokenizers that are no byte-level BPE go through `tokenizers`, with all that the pipeline asks of one."""

from pathlib import Path

import numpy as np
import pytest

from stages.instructions.instruction import Instruction, Turn
from stages.instructions.prompts import TemplateMark, make_prompt, write_prompts
from stages.instructions.templates import TEMPLATES
from stages.tokens.split_tokens import tokenize_split
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import CONTROL_TOKENS
from tests.tokens.making import (
    OTHERS,
    check_equal,
    check_equal_on_made_strings,
    make_other,
    own_of,
    shipped_rows,
    shipped_texts,
)


@pytest.fixture(scope="module", params=OTHERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_other(tmp_path_factory.mktemp("others") / request.param, request.param)


def test_equal_to_the_models_own(folder: Path) -> None:
    tokenizer, own = Tokenizer(folder), own_of(folder)
    assert tokenizer.engine == "tokenizers"
    check_equal(tokenizer, own, shipped_texts())
    check_equal_on_made_strings(folder, examples=100)


def test_control_tokens_in_a_text_are_text(folder: Path) -> None:
    """Unigram has them among its pieces, and `encode_special_tokens` does not keep it from taking them."""
    tokenizer = Tokenizer(folder)
    control = set(tokenizer.control_tokens.values()) - set(tokenizer.encode("\U0001f9ff"))  # less what is unknown
    for text in (*CONTROL_TOKENS, f"a{CONTROL_TOKENS[0]} b", f" {CONTROL_TOKENS[1]}"):
        ids = tokenizer.encode(text)
        assert not control & set(ids)
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_what_it_decodes_is_the_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("name the colour of the sky")
    assert tokenizer.decode(ids) == "name the colour of the sky"
    assert "".join(map(tokenizer.token, ids)).strip() == "name the colour of the sky"
    assert tokenizer.token(tokenizer.end_of_text) == "<|im_end|>"


def test_a_whole_split_with_control_tokens_from_the_template_alone(folder: Path, tmp_path: Path) -> None:
    chatml = TEMPLATES["chatml"]
    rows = [Instruction(row["instruction"], row["output"], row["input"]) for row in shipped_rows()[::10]]
    rows += [row._replace(history=(Turn("Say <|im_end|>.", "<|im_start|>"),)) for row in rows[:20]]
    prompts = [make_prompt(row, chatml, str(at)) for at, row in enumerate(rows)]
    write_prompts(tmp_path / "train.parquet", prompts, TemplateMark(chatml.name, chatml.hash, chatml.end))
    tokenizer = Tokenizer(folder)
    split = tokenize_split(tmp_path / "train.parquet", tokenizer, strategy="pack", max_seq_len=512)
    assert split is not None
    assert split.ids == [prompt.id for prompt in prompts]
    bounds = split.examples.offsets[1:-1]
    start, end = tokenizer.control_tokens["<|im_start|>"], tokenizer.control_tokens["<|im_end|>"]
    for row, tokens, in_response in zip(
        rows, np.split(split.examples.tokens, bounds), np.split(split.examples.in_response, bounds), strict=True
    ):
        turns = 1 + len(row.history)
        assert (tokens == start).sum() == (tokens == end).sum() == 2 * turns
        assert (tokens[in_response] == end).sum() == turns
        assert tokens[-1] == end
        response = tokenizer.encode(row.response)
        assert tokens[-1 - len(response) : -1].tolist() == response
