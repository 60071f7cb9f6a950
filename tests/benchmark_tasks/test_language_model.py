"""A checkpoint as a model of lm-eval gives what lm-eval's own gives; chats are encoded as in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer as OwnTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from stages.benchmarks.language_model import LanguageModel
from stages.benchmarks.subject import LocalSubject
from stages.instructions.templates import TEMPLATES
from stages.model.answers import Writer
from stages.model.calls import CallStore
from stages.model.checkpoint import load_model
from stages.model.decoding import Decoding
from stages.pipeline.stopping import Stop
from tests.conftest import make_tokenizer
from tests.model.tiny_models import make_tiny

CPU = torch.device("cpu")
CONTEXTS = ("What is the capital of France?", "Q: 2 + 2\nA: ", "", "  two  spaces \n\n", "caf\u00e9 \u4f60\u597d")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Choose.\nA. one\nB. two"}]


def make_lm(folder: Path, store: Path, template: str | None = None) -> LanguageModel:
    writer = Writer("local", Decoding(1), 8, torch.float32, CPU)
    own = TEMPLATES[template] if template else None
    return LocalSubject("base", folder, own, writer, store=CallStore(store), stop=Stop(), seed=1).lm


def make_peer(folder: Path) -> HFLM:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    return HFLM(load_model(folder, torch.float32, CPU), tokenizer=tokenizer, batch_size=3)


def instances(kind: Any, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, given, 0) for given in arguments]


@pytest.fixture(scope="module")
def with_beginning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer begins every text with a token of its own, as that of Llama 3 does."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny("llama").save_pretrained(folder)
    make_tokenizer(folder)
    path = str(folder / "tokenizer.json")
    tokenizer = OwnTokenizer.from_file(path)
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    )
    tokenizer.save(path)
    return folder


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2", "with_beginning"])
def test_likelihoods_are_those_of_lm_eval(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    ours, peer = make_lm(folder, tmp_path / "calls.db"), make_peer(folder)
    pairs = [(context, end) for context in CONTEXTS for end in (" Paris", "4", " A", " the end of it.\n")]
    asked = instances("loglikelihood", *pairs)
    found, expected = ours.loglikelihood(asked), peer.loglikelihood(asked, disable_tqdm=True)
    assert np.allclose([pair[0] for pair in found], [pair[0] for pair in expected], atol=1e-4, rtol=0)
    assert [pair[1] for pair in found] == [pair[1] for pair in expected]
    texts = instances("loglikelihood_rolling", ("The quick brown fox. " * 60,), ("One more.",))
    sums = peer.loglikelihood_rolling(texts, disable_tqdm=True)
    assert np.allclose(ours.loglikelihood_rolling(texts), sums, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["tiny_gpt2", "with_beginning"])
def test_greedy_texts_are_those_of_lm_eval(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    ours, peer = make_lm(folder, tmp_path / "calls.db"), make_peer(folder)
    free = ours.generate_until(instances("generate_until", ("What is it?", {"until": [], "max_gen_toks": 24})))[0]
    ways: list[dict[str, Any]] = [{"until": free[6:9]}, {"until": ["\n", "e"]}, {"max_gen_toks": 7, "until": []}]
    prompts = ("What is it?", "Two and two: ", "word " * 300)
    asked = instances("generate_until", *((p, {"max_gen_toks": 24} | way) for way in ways for p in prompts))
    texts = ours.generate_until(asked)
    assert texts == peer.generate_until(asked, disable_tqdm=True)
    assert texts[0] == free[: free.index(free[6:9])]
    assert kind == "tiny_gpt2" or len(set(texts)) > 7


def test_sampled_requests_that_repeat_get_samples_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
    asked = instances("generate_until", ("Say.", how), ("Say.", how), ("Say more.", how), ("Say.", how))
    texts = make_lm(tiny_llama, tmp_path / "calls.db").generate_until(asked)
    assert len(set(texts)) == 4
    assert make_lm(tiny_llama, tmp_path / "other.db").generate_until(asked) == texts


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_encoded_as_in_training(template: str, with_beginning: Path, tmp_path: Path) -> None:
    lm = make_lm(with_beginning, tmp_path / "calls.db", template)
    text = lm.apply_chat_template(CHAT)
    assert "Be brief." in text
    system = CHAT[0]["content"] if template != "alpaca" else ""
    question = CHAT[1]["content"] if system else f"Be brief.\n\n{CHAT[1]['content']}"
    tokenizer = lm._subject.tokenizer
    for answer in ("A", "two words"):
        whole = TEMPLATES[template].render(question, response=answer, system=system)
        example = tokenizer.encode_segments([segment for segment in whole if segment.role != "end"])
        context, continuation = lm._encode_pair(text, answer)
        assert [*context, *continuation] == example
        assert continuation == tokenizer.encode(answer)
        assert lm.tok_encode(text) == example[: len(context)]


def test_an_answer_that_is_begun_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    lm = make_lm(tiny_llama, tmp_path / "calls.db", "chatml")
    text = lm.apply_chat_template([*CHAT, {"role": "assistant", "content": "Answer:"}], add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\nAnswer:")
    context, continuation = lm._encode_pair(text, " A")
    tokenizer = lm._subject.tokenizer
    assert tokenizer.decode(continuation) == " A"
    assert tokenizer.decode(context) == text
    assert context[0] == tokenizer.control_tokens["<|im_start|>"]


def test_control_tokens_in_a_chat_are_text(tiny_llama: Path, tmp_path: Path) -> None:
    lm = make_lm(tiny_llama, tmp_path / "calls.db", "chatml")
    text = lm.apply_chat_template([{"role": "user", "content": "<|im_end|>"}])
    ids = lm.tok_encode(text)
    assert ids.count(lm._subject.tokenizer.control_tokens["<|im_end|>"]) == 1
    assert lm._subject.tokenizer.decode(ids) == text


def test_what_closes_an_answer_is_taken_off(
    with_beginning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"max_gen_toks": 12, "until": []}
    free = make_lm(with_beginning, tmp_path / "calls.db", "chatml")
    prompt = free.apply_chat_template(CHAT)
    whole = free.generate_until(instances("generate_until", (prompt, how)))[0]
    monkeypatch.setattr(free._subject, "_template", _Ending(whole[5:8]))
    assert free.generate_until(instances("generate_until", (prompt, how))) == [whole[: whole.index(whole[5:8])]]


class _Ending:
    """A template's name and what it closes answers with."""

    name = "other"

    def __init__(self, end: str) -> None:
        self.end = end
