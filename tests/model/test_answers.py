"""Answers are kept as they come, written once, and the same however often their writing was cut short."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from stages.model import answers
from stages.model.answers import Writer, answer
from stages.model.calls import CallStore
from stages.model.decoding import Completion, Decoding, Job, Stops
from stages.model.engine import Engine
from stages.pipeline.errors import StoppedError, UserError
from stages.pipeline.stopping import Stop

CPU = torch.device("cpu")


def make_writer(engine: Any = "local", **how: Any) -> Writer:
    return Writer(engine, Decoding(**{"max_new_tokens": 6} | how), 4, torch.float32, CPU)


def make_jobs(count: int = 12) -> list[Job]:
    dice = np.random.default_rng(2)
    return [Job(dice.integers(3, 1000, dice.integers(1, 30)).tolist(), at) for at in range(count)]


class Asked:
    """Answers jobs with one store; says how many it had to write."""

    def __init__(self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.store, self.written = folder, CallStore(store), 0
        self.stop = Stop()
        self.stop_after = sys.maxsize
        put = self.store.put

        def counted(key: str, value: dict[str, Any]) -> None:
            put(key, value)
            self.written += 1
            if self.written == self.stop_after:
                self.stop._reason = "SIGTERM"

        monkeypatch.setattr(self.store, "put", counted)

    def __call__(self, jobs: Sequence[Job], writer: Writer) -> list[Completion]:
        self.written = 0
        return answer("model", self.folder, jobs, writer, 2, self.store, self.stop)


@pytest.fixture
def asked(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(tiny_llama, tmp_path / "calls.db", monkeypatch)


def test_what_was_written_is_not_written_again(asked: Asked) -> None:
    first = asked(make_jobs(), make_writer())
    assert asked.written == 12
    assert asked(make_jobs(), make_writer()) == first
    assert asked.written == 0
    assert asked(make_jobs(15), make_writer())[:12] == first
    assert asked.written == 3


def test_equal_jobs_are_written_once_and_answered_each(asked: Asked) -> None:
    job = make_jobs(1)[0]
    first, second = asked([job, job], make_writer())
    assert first == second
    assert asked.written == 1


@pytest.mark.parametrize("changed", [{"max_new_tokens": 7}, {"temperature": 0.5}, {"repetition_penalty": 1.2}])
def test_another_way_to_decode_is_another_answer(asked: Asked, changed: dict[str, Any]) -> None:
    asked(make_jobs(), make_writer())
    asked(make_jobs(), make_writer(**changed))
    assert asked.written == 12


def test_other_texts_that_stop_it_are_another_answer(asked: Asked) -> None:
    def decode(tokens: Sequence[int]) -> str:
        return "".join(f"{token}," for token in tokens)

    job = make_jobs(1)
    (whole,) = asked(job, make_writer())
    stops = Stops((decode(whole.token_ids[:2]),), decode)
    for written in (1, 0):
        asked.written = 0
        (cut,) = answer("model", asked.folder, job, make_writer(), 2, asked.store, Stop(), stops=stops)
        assert cut == (whole.token_ids[:2], "stop")
        assert asked.written == written
    assert asked(job, make_writer()) == [whole]
    assert asked.written == 0


def test_another_model_is_another_answer(asked: Asked, tiny_gpt2: Path) -> None:
    asked(make_jobs(), make_writer())
    asked.folder = tiny_gpt2
    asked(make_jobs(), make_writer())
    assert asked.written == 12


def test_stopped_it_goes_on_where_it_stood(asked: Asked, tiny_llama: Path, tmp_path: Path) -> None:
    undisturbed = answer("model", tiny_llama, make_jobs(), make_writer(), 2, CallStore(tmp_path / "other.db"), Stop())
    asked.stop_after = 5
    with pytest.raises(StoppedError, match=r"of 12 answers of the model are kept"):
        asked(make_jobs(), make_writer())
    kept = asked.written
    assert 5 <= kept < 12
    asked.stop, asked.stop_after = Stop(), sys.maxsize
    assert asked(make_jobs(), make_writer()) == undisturbed
    assert asked.written == 12 - kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_slots_do_not_suit_is_answered_by_transformers(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = MistralConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path / "other")
    asked = Asked(tmp_path / "other", tmp_path / "calls.db", monkeypatch)
    job = make_jobs()[3]
    (found,) = asked([job], make_writer()._replace(dtype=dtype))
    assert "window of 8" in capfd.readouterr().err
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "other", dtype=dtype)
    expected = model.generate(torch.tensor([job.prompt]), max_new_tokens=6, do_sample=False, eos_token_id=2)
    assert found.token_ids == [token for token in expected[0, len(job.prompt) :].tolist() if token != 2]


def test_a_prompt_as_long_as_the_model_takes_is_refused(asked: Asked) -> None:
    with pytest.raises(UserError, match=r"a prompt has 256 tokens and the model takes 256, answer included"):
        asked([Job([5] * 256)], make_writer())


def test_little_memory_means_fewer_answers_at_once(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = asked(make_jobs(), make_writer())
    sizes: list[int] = []

    def make_engine(*given: Any, batch_size: int, **known: Any) -> Engine:
        sizes.append(batch_size)
        return Engine(*given, batch_size=batch_size, **known)

    monkeypatch.setattr(answers, "free_memory", lambda device: 40_000)
    monkeypatch.setattr(answers, "Engine", make_engine)
    asked.store = CallStore(asked.store._path.with_name("new.db"))
    assert asked(make_jobs(), make_writer()) == plenty
    assert sizes == [2]


def stand_in_for_vllm(seen: list[Any]) -> Any:
    """The two classes of vLLM that are used, with the signatures of its documentation; answers with the prompt."""

    class SamplingParams:
        def __init__(
            self,
            *,
            max_tokens: int,
            temperature: float,
            top_k: int,
            top_p: float,
            repetition_penalty: float,
            seed: int,
            stop_token_ids: list[int],
            detokenize: bool,
        ) -> None:
            self.given = locals()

    class LLM:
        def __init__(self, model: str, *, dtype: str, skip_tokenizer_init: bool) -> None:
            seen.append((model, dtype))

        def generate(self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams]) -> list[Any]:
            seen.extend(params.given for params in sampling_params)
            ends = [[2] if len(p["prompt_token_ids"]) % 2 else [] for p in prompts]
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(p["prompt_token_ids"][:4] + end))])
                for p, end in zip(prompts, ends, strict=True)
            ]

    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    return module


def test_vllm_is_asked_for_the_same(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setitem(sys.modules, "vllm", stand_in_for_vllm(seen))
    jobs = make_jobs()
    found = asked(jobs, make_writer("vllm", temperature=0.7))
    for job, completion in zip(jobs, found, strict=True):
        assert completion == (list(job.prompt[:4]), "stop" if len(job.prompt) % 2 else "length")
    assert seen[0] == (str(asked.folder), "float32")
    assert [given["seed"] for given in seen[1:]] == [job.seed for job in jobs]
    assert {(g["max_tokens"], g["temperature"], g["top_k"], tuple(g["stop_token_ids"])) for g in seen[1:]} == {
        (6, 0.7, -1, (2,))
    }


def test_without_vllm_it_says_what_to_do(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"generate\.engine: vllm cannot be imported .*engine: local"):
        asked(make_jobs(), make_writer("vllm"))
