"""Labels, packing and the arrays: where the loss lies, and where it does not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.instructions.templates import TEMPLATES
from stages.tokens.arrays import NO_EXAMPLE, collate, read_arrays, write_arrays
from stages.tokens.audit import audit
from stages.tokens.labels import IGNORE_INDEX, Example, label
from stages.tokens.packing import pack
from stages.tokens.split_tokens import SplitTokens
from stages.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return Tokenizer(tiny_llama)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("input", ["", "1 2"])
def test_the_loss_lies_on_response_and_end_of_text(tokenizer: Tokenizer, template: str, input: str) -> None:
    segments = TEMPLATES[template].render("Add.", input, "It is 3.")
    example = label(segments, tokenizer, 256)
    assert example is not None
    assert np.array_equal(example.input_ids[1:], example.next_ids[:-1])
    assert tokenizer.decode(
        example.input_ids[:1].tolist() + example.next_ids[~example.in_response].tolist()
    ) == "".join(segment.text for segment in segments if segment.role in ("template", "user"))
    trained = example.next_ids[example.in_response].tolist()
    assert trained[-1] == tokenizer.end_of_text
    assert trained.count(tokenizer.end_of_text) == 1
    end = TEMPLATES[template].end
    assert tokenizer.decode(trained[:-1]) == "It is 3." + ("" if end == "<|im_end|>" else end)


@given(st.integers(1, 120), st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_truncation_keeps_end_of_text_and_a_response_token(
    tokenizer: Tokenizer, max_seq_len: int, instruction: str, response: str
) -> None:
    segments = TEMPLATES["alpaca"].render(instruction, "", response)
    whole, example = label(segments, tokenizer, 10_000), label(segments, tokenizer, max_seq_len)
    assert whole is not None
    assert not whole.truncated
    prompt = int((~whole.in_response).sum()) + 1
    if example is None:
        assert prompt + 2 > max_seq_len + 1
        return
    assert len(example.input_ids) <= max_seq_len
    assert example.next_ids[-1] == tokenizer.end_of_text
    assert example.in_response.sum() >= 2 or len(whole.input_ids) == len(example.input_ids)
    assert example.truncated == (len(example.input_ids) < len(whole.input_ids))
    assert np.array_equal(example.input_ids, whole.input_ids[: len(example.input_ids)])


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_packing_loses_nothing_and_overfills_no_row(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    # Best-fit decreasing needs at most 11/9 of the best possible, and 4 (Johnson 1973).
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 64) + 4 or max(lengths) > 32


def made(tokens: list[int], prompt: int) -> Example:
    array = np.array(tokens, dtype=np.int32)
    return Example(array[:-1], array[1:], np.arange(1, len(tokens)) >= prompt, truncated=False)


def test_golden_arrays(tmp_path: Path) -> None:
    """Prompt 5 6, response 7, end 2; prompt 8, response 9 9, end 2: end-of-text is trained once, padding never."""
    examples = [made([5, 6, 7, 2], 2), made([8, 9, 9, 2], 1), made([5, 7, 2], 1)]
    arrays = collate(examples, ["a", "b", "c"], [[0, 1], [2]], end_of_text=2, mask_instruction=True)
    assert arrays.input_ids.tolist() == [[5, 6, 7, 8, 9, 9], [5, 7, 2, 2, 2, 2]]
    assert arrays.labels.tolist() == [[-100, 7, 2, 9, 9, 2], [7, 2, -100, -100, -100, -100]]
    assert arrays.next_ids.tolist() == [[6, 7, 2, 9, 9, 2], [7, 2, -100, -100, -100, -100]]
    assert arrays.example.tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, -1, -1, -1, -1]]
    figures = audit(SplitTokens(arrays, 0, []), end_of_text=2)
    assert figures == {
        "examples": 3,
        "rows": 2,
        "tokens": 8,
        "supervised_tokens": 7,
        "padding_fraction": 0.333333,
        "truncated": 0,
        "dropped": 0,
        "eos_trained_fraction": 1.0,
    }
    write_arrays(tmp_path / "split", arrays)
    read = read_arrays(tmp_path / "split")
    assert isinstance(read.input_ids, np.memmap)
    assert np.array_equal(read.labels, arrays.labels)
    assert read.ids == arrays.ids


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.booleans())
def test_masking_the_instruction(sizes: list[tuple[int, int]], mask_instruction: bool) -> None:
    examples = [made([3] * prompt + [4] * response + [2], prompt) for prompt, response in sizes]
    rows = pack([len(example.input_ids) for example in examples], 20)
    arrays = collate(examples, [""] * len(sizes), rows, end_of_text=2, mask_instruction=mask_instruction)
    expected = sum(response + 1 + (0 if mask_instruction else prompt - 1) for prompt, response in sizes)
    assert int((arrays.labels != IGNORE_INDEX).sum()) == expected
    assert (arrays.labels[arrays.example == NO_EXAMPLE] == IGNORE_INDEX).all()


def test_an_untrained_end_shows_in_the_audit() -> None:
    arrays = collate([made([5, 7, 2], 1)], ["a"], [[0]], end_of_text=2, mask_instruction=True)
    arrays.labels[0, 1] = IGNORE_INDEX
    assert audit(SplitTokens(arrays, 0, []), end_of_text=2)["eos_trained_fraction"] == 0.0
