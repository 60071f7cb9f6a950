"""Strict parameters: what is wrong in params.yaml is said with its place, and nothing is guessed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.base_model import BaseModelParams
from stages.benchmark import BenchmarkParams
from stages.format import FormatParams
from stages.generate import GenerateParams
from stages.judge import JudgeParams
from stages.model.settings import FinetuneParams
from stages.pipeline.errors import UserError
from stages.pipeline.params import Params
from stages.split import SplitParams
from stages.tokenize_and_collate import CollateParams
from tests.conftest import ROOT

CLASSES: tuple[type[Params], ...] = (
    BaseModelParams,
    FormatParams,
    SplitParams,
    CollateParams,
    FinetuneParams,
    GenerateParams,
    JudgeParams,
    BenchmarkParams,
)
SHIPPED: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def changed(folder: Path, section: str, drop: str | None = None, **values: object) -> Path:
    """A copy of the shipped params.yaml with other values in one section; texts are written as YAML would read them."""
    parameters = {name: value for name, value in SHIPPED[section].items() if name != drop} | values
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(SHIPPED | {section: parameters}))
    return path


def with_line(folder: Path, section: str, name: str, text: str) -> Path:
    """The same with one value exactly as a person would type it."""
    path = changed(folder, section, **{name: "TYPED"})
    path.write_text(path.read_text().replace("TYPED", text))
    return path


@pytest.mark.parametrize("kind", CLASSES)
def test_the_shipped_file_holds_every_parameter_and_no_other(kind: type[Params]) -> None:
    kind.load(ROOT / "params.yaml")
    assert set(SHIPPED[kind.section]) == set(kind.model_fields)


def test_every_section_of_the_shipped_file_belongs_to_a_stage() -> None:
    assert list(SHIPPED) == [kind.section for kind in CLASSES]


@pytest.mark.parametrize("kind", CLASSES)
def test_no_parameter_has_a_default_in_code(kind: type[Params]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.is_required()] == []


def test_an_unknown_parameter_is_refused_with_the_likely_one(tmp_path: Path) -> None:
    path = changed(tmp_path, "finetune", drop="learning_rate", learning_rte=1e-4)
    with pytest.raises(UserError) as caught:
        FinetuneParams.load(path)
    assert f"{path}: finetune.learning_rte: unknown parameter; did you mean 'learning_rate'?" in str(caught.value)
    assert f"{path}: finetune.learning_rate: missing" in str(caught.value)


def test_an_unknown_parameter_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    path = changed(tmp_path, "format", zzz=1)
    known = ", ".join(FormatParams.model_fields)
    with pytest.raises(UserError, match=rf"format\.zzz: unknown parameter; known: {known}$"):
        FormatParams.load(path)


@pytest.mark.parametrize("name", FinetuneParams.model_fields)
def test_a_missing_parameter_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"params\.yaml: finetune\.{name}: missing; see the shipped params\.yaml$"):
        FinetuneParams.load(changed(tmp_path, "finetune", drop=name))


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [
        (FinetuneParams, "epochs", "many", "input should be a valid integer.*, got 'many'"),
        (FinetuneParams, "epochs", "1.5", r"valid integer.*, got 1\.5"),
        (FinetuneParams, "epochs", "", "valid integer, got None"),
        (FinetuneParams, "epochs", "[4]", r"valid integer, got \[4\]"),
        (FinetuneParams, "epochs", "true", "expected a number, not true or false, got True"),
        (FinetuneParams, "learning_rate", "yes", "expected a number, not true or false, got True"),
        (FinetuneParams, "learning_rate", "fast", "valid number.*, got 'fast'"),
        (FinetuneParams, "early_stopping", "maybe", "valid boolean.*, got 'maybe'"),
        (FinetuneParams, "schedule", "cosin", "'constant', 'linear' or 'cosine', got 'cosin'"),
        (FinetuneParams, "method", "full-lora", "'full', 'lora', 'dora' or 'qlora', got 'full-lora'"),
        (FinetuneParams, "optimizer", "adamw", "'AdamW', 'Adam', .*, got 'adamw'"),
        (FinetuneParams, "optimizer_options", "fast", "valid dictionary, got 'fast'"),
        (FinetuneParams, "lora_targets", "3", "all-linear, or names of layers, got 3"),
        (FinetuneParams, "compile", "perhaps", "'auto', 'true' or 'false', got 'perhaps'"),
        (FinetuneParams, "gradient_checkpointing", "some", "valid boolean.*, got 'some'"),
        (FinetuneParams, "sharding", "ddp", "'none' or 'fsdp', got 'ddp'"),
        (FinetuneParams, "launch", "2", "valid string, got 2"),
        (FormatParams, "template", "3", "valid string, got 3"),
        (SplitParams, "salt", "", "valid string, got None"),
        (CollateParams, "mask_instruction", "2", "valid boolean.*, got 2"),
        (BaseModelParams, "sha256", "abc", "should match pattern .*, got 'abc'"),
    ],
)
def test_a_mistyped_value_is_refused(tmp_path: Path, kind: type[Params], name: str, text: str, message: str) -> None:
    path = with_line(tmp_path, kind.section, name, text)
    with pytest.raises(UserError, match=rf"^{path}: {kind.section}\.{name}: .*{message}$"):
        kind.load(path)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (FinetuneParams, "learning_rate", "-2e-4"),
        (FinetuneParams, "learning_rate", "0"),
        (FinetuneParams, "learning_rate", "1"),
        (FinetuneParams, "learning_rate", "2e4"),
        (FinetuneParams, "warmup_fraction", "1"),
        (FinetuneParams, "epochs", "0"),
        (FinetuneParams, "batch_size", "0"),
        (FinetuneParams, "micro_batch_size", "0"),
        (FinetuneParams, "weight_decay", "-0.1"),
        (FinetuneParams, "max_grad_norm", "0"),
        (FinetuneParams, "validations_per_epoch", "0"),
        (FinetuneParams, "overfit_patience", "0"),
        (FinetuneParams, "overfit_p_value", "0"),
        (FinetuneParams, "lora_rank", "0"),
        (FinetuneParams, "lora_alpha", "0"),
        (FinetuneParams, "lora_dropout", "1"),
        (FinetuneParams, "label_smoothing", "1"),
        (FinetuneParams, "neftune_alpha", "-5"),
        (FinetuneParams, "sample_prompts", "-1"),
        (FinetuneParams, "sample_tokens", "0"),
        (FinetuneParams, "save_every", "0"),
        (FinetuneParams, "seed", "-1"),
        (SplitParams, "near_duplicate_threshold", "0"),
        (SplitParams, "near_duplicate_threshold", "1.01"),
        (CollateParams, "max_seq_len", "1"),
        (CollateParams, "strategy", "packed"),
        (GenerateParams, "temperature", "-0.1"),
        (GenerateParams, "top_p", "0"),
        (GenerateParams, "top_p", "1.1"),
        (GenerateParams, "max_new_tokens", "0"),
        (JudgeParams, "scale", "marks"),
        (JudgeParams, "card_rows", "0"),
        (GenerateParams, "top_k", "-1"),
        (GenerateParams, "repetition_penalty", "0"),
        (GenerateParams, "num_samples", "0"),
        (GenerateParams, "engine", "llamacpp"),
        (JudgeParams, "confidence", "1"),
        (JudgeParams, "resamples", "99"),
    ],
)
def test_an_impossible_value_is_refused(tmp_path: Path, kind: type[Params], name: str, text: str) -> None:
    path = with_line(tmp_path, kind.section, name, text)
    with pytest.raises(UserError, match=rf"^{path}: {kind.section}\.{name}: input should be "):
        kind.load(path)


@pytest.mark.parametrize("text", ["1.0e400", "1.0e+400", "-1.0e400", ".nan", ".inf", "-.inf", "nan", "inf", "Infinity"])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm"])
def test_a_number_that_is_none_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = with_line(tmp_path, "finetune", name, text)
    with pytest.raises(UserError, match=rf"^{path}: finetune\.{name}: input should be .*, got "):
        FinetuneParams.load(path)


def test_a_rate_of_1_is_for_optimizers_that_multiply_it_by_the_gradient(tmp_path: Path) -> None:
    path = changed(tmp_path, "finetune", optimizer="SGD", learning_rate=1.0)
    assert FinetuneParams.load(path).learning_rate == 1.0


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_scientific_notation_is_read_also_where_yaml_takes_it_for_text(tmp_path: Path, text: str) -> None:
    assert FinetuneParams.load(with_line(tmp_path, "finetune", "learning_rate", text)).learning_rate == 1e-5


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, "finetune", epochs=0, seed=-1, colour="red")
    with pytest.raises(UserError) as caught:
        FinetuneParams.load(path)
    assert [f"finetune.{name}: " in str(caught.value) for name in ("epochs", "seed", "colour")] == [True] * 3


@pytest.mark.parametrize(("test_fraction", "total"), [(0.2, "1.1"), (0.05, "0.95")])
def test_fractions_must_add_up(tmp_path: Path, test_fraction: float, total: str) -> None:
    path = changed(tmp_path, "split", train_fraction=0.85, validation_fraction=0.05, test_fraction=test_fraction)
    with pytest.raises(UserError, match=rf"^{path}: split: train, validation and test .* add up to 1, not {total}$"):
        SplitParams.load(path)


def test_fractions_may_add_up_but_for_rounding(tmp_path: Path) -> None:
    path = changed(tmp_path, "split", train_fraction=0.7, validation_fraction=0.2, test_fraction=0.1)
    assert 0.7 + 0.2 + 0.1 != 1
    assert SplitParams.load(path).train_fraction == 0.7


@pytest.mark.parametrize("text", ["", "other:\n  template: chatml\n", "format:\n", "format: chatml\n", "- format\n"])
def test_a_missing_section_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"^{path}: section 'format' is missing"):
        FormatParams.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/params\.yaml: not found"):
        FormatParams.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", [b"format: {template: chatml", b"format:\n\ttemplate: chatml\n", b"format: \xff\n"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: not valid YAML: "):
        FormatParams.load(path)


ENDPOINT = {"base_url": "http://127.0.0.1:8000/v1", "model": "m", "api_key_env": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "m"}, "judge.endpoints.far.modle: unknown parameter; see the shipped params.yaml"),
        ({"base_url": "ftp://127.0.0.1/v1"}, "judge.endpoints.far: base_url must be"),
        ({"base_url": "http://me:hidden@127.0.0.1/v1"}, "judge.endpoints.far: base_url must"),
        (
            {"api_key_env": "sk-hidden-123"},
            "judge.endpoints.far: api_key_env takes the name of an environment variable",
        ),
        ({"options": {"api_key": "hidden"}}, "judge.endpoints.far: options must hold no key"),
        ({"concurrency": 0}, "judge.endpoints.far.concurrency: input should be greater than or equal to 1"),
    ],
)
def test_endpoints_are_checked_and_no_secret_is_shown(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = changed(tmp_path, "judge", judges=["far"], endpoints={"far": ENDPOINT | changes})
    with pytest.raises(UserError) as caught:
        JudgeParams.load(path)
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"judges": []}, "judge.judges: list should have at least 1 item"),
        ({"judges": ["far"]}, "judges: no endpoint is called 'far'; known: embedded"),
        ({"judges": ["embedded", "embedded"]}, "judges: one of them stands there twice"),
        ({"endpoints": {"embedded": ENDPOINT}}, "endpoints: 'embedded' is no name for an endpoint"),
        ({"endpoints": {"a/b": ENDPOINT}}, "endpoints: 'a/b' is no name for an endpoint"),
    ],
)
def test_judges_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        JudgeParams.load(changed(tmp_path, "judge", **values))
    assert message in str(caught.value)
