import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.benchmarks.benchmark import Figure, Measurement, Settings
from stages.benchmarks.evals_registry import chat_of, read_evals
from stages.benchmarks.model_graded import INVALID, read_choice, read_spec
from stages.benchmarks.openai_evals import (
    Evals,
    find_eval,
    fuzzy_match,
    includes,
    json_match,
    json_validator,
    match,
    normalize,
)
from stages.model.endpoint import EndpointParams, Reply
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.oracles import OracleSubject
from tests.judging.servers import Act, Body, Script, StandIn, say, serving

BASIC = "evals.elsuite.basic"
GRADED = "evals.elsuite.modelgraded.classify:ModelBasedClassify"
SPECS = {
    "fact": {
        "prompt": "[Question]: {input}\n[Expert]: {ideal}\n[Submission]: {completion}\nWhich?",
        "choice_strings": "ABC",
        "input_outputs": {"input": "completion"},
    },
    "funny": {
        "prompt": [{"role": "system", "content": "Judge jokes."}, {"role": "user", "content": "{completion} {tone}"}],
        "choice_strings": ["Yes", "No", "Unsure"],
        "choice_scores": {"Yes": 1.0, "No": 0.25, "Unsure": 0.5},
        "input_outputs": {"input": "completion"},
    },
    "stars": {
        "prompt": "{n} jokes:\n{completion}",
        "eval_type": "cot_classify",
        "choice_strings": "12345",
        "choice_scores": "from_strings",
        "input_outputs": {"input": "completion"},
        "output_template": "{i_ABC}) {output}\n",
    },
}


@pytest.fixture(autouse=True)
def own_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def asking(question: str, ideal: Any = None, **more: Any) -> dict[str, Any]:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    return {"input": chat, **({} if ideal is None else {"ideal": ideal}), **more}


CAPITALS = {"France": "Paris", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo", "Egypt": "Cairo", "Cuba": "Havana"}
ROWS = [asking(f"Capital of {land}?", [city, f"It is {city}"]) for land, city in CAPITALS.items()]


def knows(chat: Any) -> str:
    return next(city for land, city in CAPITALS.items() if land in chat[-1]["content"])


def registry(folder: Path, **evals: tuple[str, dict[str, Any], list[dict[str, Any]]]) -> Path:
    """Each eval has its class, its arguments and its rows; it is called by its name and by <name>.dev.v0."""
    entries: dict[str, Any] = {}
    for name, (cls, args, rows) in evals.items():
        entries[name] = {"id": f"{name}.dev.v0", "metrics": ["accuracy"]}
        entries[f"{name}.dev.v0"] = {"class": cls, "args": {"samples_jsonl": f"{name}/samples.jsonl", **args}}
        write(folder / f"data/{name}/samples.jsonl", rows)
    (folder / "evals").mkdir(parents=True)
    (folder / "evals/own.yaml").write_text(yaml.safe_dump(entries))
    (folder / "modelgraded").mkdir()
    (folder / "modelgraded/own.yaml").write_text(yaml.safe_dump(SPECS))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, subject: OracleSubject, *wanted: str, **how: Any) -> Measurement:
    return Evals().measure([subject], folder, list(wanted), Settings(resamples=100, **how), folder.parent / "rows")


def graded(folder: Path, script: Script, subject: OracleSubject, *wanted: str) -> tuple[Measurement, StandIn]:
    with serving(script) as server:
        judge = EndpointParams(base_url=server.url, model="tiny", api_key_env=None, retries=0)
        return run(folder, subject, *wanted, judge=judge), server


def value(measured: Measurement, task: str, metric: str) -> float:
    return figure(measured, task, metric).value


def figure(measured: Measurement, task: str, metric: str) -> Figure:
    (found,) = (one for one in measured.figures if (one.task, one.metric) == (task, metric))
    return found


JSON_ROWS = [
    asking(f"{land}: its capital as JSON?", json.dumps({"city": city, "is": [1, 2.5, "x", True]}))
    for land, city in CAPITALS.items()
]


@pytest.mark.parametrize(
    ("name", "rows", "metrics"),
    [
        ("match:Match", ROWS, ["accuracy"]),
        ("includes:Includes", ROWS, ["accuracy"]),
        ("fuzzy_match:FuzzyMatch", ROWS, ["accuracy", "f1_score"]),
        ("json_match:JsonMatch", JSON_ROWS, ["accuracy"]),
    ],
)
def test_gold_has_the_maximum_and_gold_of_other_rows_nothing(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], metrics: list[str]
) -> None:
    folder = registry(tmp_path / "evals", capitals=(f"{BASIC}.{name}", {}, rows))
    golds = [row["ideal"] if isinstance(row["ideal"], str) else row["ideal"][0] for row in rows]
    land = [next(name for name in CAPITALS if name in row["input"][1]["content"]) for row in rows]
    gold = dict(zip(land, golds, strict=True))
    other = dict(zip(land, [*golds[1:], golds[0]], strict=True))

    def reply(answers: dict[str, str]) -> OracleSubject:
        return OracleSubject(reply=lambda chat: next(a for name, a in answers.items() if name in chat[-1]["content"]))

    for metric in metrics:
        assert value(run(folder, reply(gold), "capitals"), "evals/capitals", metric) == 1.0
        assert value(run(folder, reply(other), "capitals"), "evals/capitals", metric) == 0.0


def test_shuffled_answers_are_right_by_chance(tmp_path: Path) -> None:
    rows = [asking(f"{at}: even?", ["yes", "no"][at % 2]) for at in range(200)]
    folder = registry(tmp_path / "evals", even=(f"{BASIC}.match:Match", {}, rows))

    def even(chat: Any) -> str:
        return ["yes", "no"][int(chat[-1]["content"].split(":")[0]) % 2]

    assert value(run(folder, OracleSubject(reply=even)), "evals/even", "accuracy") == 1.0
    assert 0.4 < value(run(folder, OracleSubject(reply=even, shuffled=True)), "evals/even", "accuracy") < 0.6


def test_scores_by_hand() -> None:
    """Cases that tell the classes apart; figures from evals/elsuite/utils.py worked out by hand."""
    assert match("Paris, France", ["Lima", "Paris"], {}) == {"accuracy": 1.0}
    assert match("\n Paris", ["Paris"], {}) == {"accuracy": 1.0}
    assert match("It is Paris", ["Paris"], {}) == match("paris", ["Paris"], {}) == {"accuracy": 0.0}
    assert includes("It is Paris.", ["Paris"], {}) == {"accuracy": 1.0}
    assert includes("it is paris", ["Paris"], {}) == {"accuracy": 0.0}
    assert includes("it is paris", ["Paris"], {"ignore_case": True}) == {"accuracy": 1.0}
    assert normalize("A  Man, a plan: the CANAL!") == "man plan canal"
    # {season: 1, 11: 1} of two and of four words: precision 1/2, recall 1
    found = fuzzy_match("It is Season 11", ["Season 11", "11"], {})
    assert found == {"accuracy": 1.0, "f1_score": pytest.approx(2 * 0.5 * 1 / 1.5)}
    assert fuzzy_match("eleven", ["in season eleven"], {})["accuracy"] == 1.0  # either way round
    assert fuzzy_match("", ["eleven"], {}) == {"accuracy": 0.0, "f1_score": 0.0}
    assert fuzzy_match("The!", ["a"], {}) == {"accuracy": 1.0, "f1_score": 0.0}
    assert json_match('{"a": [1, {"b": "c"}]}', ['{"a": [1.0, {"b": "c"}]}'], {}) == {"accuracy": 1.0}
    assert json_match('{"a": 1, "b": 2}', ['{"a": 1}', '{"b": 2, "a": 1}'], {}) == {"accuracy": 1.0}
    for said in ('{"a": 1, "c": 3}', "[1]", '{"a": null}', "a: 1", "null", ""):
        assert json_match(said, ['{"a": 1}'], {}) == {"accuracy": 0.0}
    assert json_match("null", ["null"], {}) == {"accuracy": 0.0}
    assert json_validator('{"a": 1}', [], {}) == {"is_valid_json": 1.0}
    assert json_validator("{a: 1}", [], {}) == {"is_valid_json": 0.0}


def test_names_limits_and_few_shots(tmp_path: Path) -> None:
    args = {"num_few_shot": 1, "few_shot_jsonl": "capitals/few.jsonl"}
    folder = registry(tmp_path / "evals", capitals=(f"{BASIC}.match:Match", args, ROWS))
    shot = [{"role": "system", "content": "Capital of Mali?", "name": "example_user"}]
    shot += [{"role": "system", "content": "Bamako", "name": "example_assistant"}]
    write(folder / "data/capitals/few.jsonl", [{"sample": shot}, {"sample": []}])
    subject = OracleSubject(reply=knows)
    measured = run(folder, subject, "capitals", limit=4)
    assert [message["role"] for message in subject.asked[0]] == ["system", "user", "assistant", "user"]
    assert subject.asked[0][2]["content"] == "Bamako"
    found = figure(measured, "evals/capitals", "accuracy")
    assert (found.n, found.shots, found.scope, found.value) == (4, 1, "sample", 1.0)
    assert "capitals.dev.v0, class Match" in found.protocol
    by_id = run(folder, OracleSubject(reply=knows), "capitals.dev.v0")
    assert figure(by_id, "evals/capitals", "accuracy").scope == "full"


def test_inputs_as_text_and_as_messages() -> None:
    assert chat_of("Hi", "") == [{"role": "user", "content": "Hi"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Hi"}]
    assert [message["role"] for message in chat_of(messages, "")] == ["system", "user"]
    for wrong in (None, 5, [], ["Hi"], [{"role": "user", "content": [{"image": "x"}]}]):
        with pytest.raises(UserError, match="row 3: `input`"):
            chat_of(wrong, "row 3")


def test_samples_may_be_compressed(tmp_path: Path) -> None:
    args = {"samples_jsonl": "capitals/samples.jsonl.gz"}
    folder = registry(tmp_path / "evals", capitals=(f"{BASIC}.includes:Includes", args, ROWS))
    text = (folder / "data/capitals/samples.jsonl").read_bytes()
    (folder / "data/capitals/samples.jsonl.gz").write_bytes(gzip.compress(text))
    assert Evals().find(folder).rows == {"capitals": len(ROWS)}
    assert value(run(folder, OracleSubject(reply=knows)), "evals", "accuracy") == 1.0


def test_a_bare_registry_leaves_out_and_counts_what_it_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = registry(
        tmp_path / "evals",
        capitals=(f"{BASIC}.match:Match", {}, ROWS),
        pictures=("evals.elsuite.mmmu.eval:MMMU", {"subject": "art"}, []),
        jokes=(GRADED, {"modelgraded_spec": "funny"}, ROWS),
    )
    found = Evals().find(folder)
    assert found.rows == {"capitals": 6, "jokes": 6}
    assert found.scope(list(found.published), None) == "sample"
    measured = run(folder, OracleSubject(reply=knows))
    whole = figure(measured, "evals", "accuracy")
    assert (whole.value, whole.run, whole.out_of, whole.scope) == (1.0, 1, 3, "sample")
    assert "2 of 3 are left out" in capsys.readouterr().err
    for name, problem in (("pictures", "class evals.elsuite.mmmu.eval:MMMU is none of"), ("jokes", "needs a judge")):
        with pytest.raises(UserError, match=f"evals/{name}.*{problem}"):
            run(folder, OracleSubject(reply=knows), name)
    with pytest.raises(UserError, match="evals/capital: not in the registry; nearest: capitals"):
        run(folder, OracleSubject(reply=knows), "capital")


def test_pointers_of_git_lfs_are_told_apart_from_data(tmp_path: Path) -> None:
    folder = registry(tmp_path / "evals", capitals=(f"{BASIC}.match:Match", {}, ROWS))
    (folder / "data/capitals/samples.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for ask in (lambda: Evals().find(folder), lambda: run(folder, OracleSubject(reply=knows), "capitals")):
        with pytest.raises(UserError, match=r"a pointer of git-lfs and no data; run `git lfs pull`.*pip download"):
            ask()


@pytest.mark.parametrize(
    ("evals", "row", "problem"),
    [
        ("a: [1", {}, r"own\.yaml: no YAML"),
        ("a: {id: b}", {}, "an id leads to b"),
        ("a: {id: a}", {}, "an id leads to a"),
        ("a: {class: x, args: 1}\n- b", {}, r"own\.yaml: no YAML"),
        ("[1]", {}, "not a file of names"),
        (None, {"input": "a"}, r"row 1: `ideal` must be a text"),
        (None, {"input": "a", "ideal": ["a", 5]}, r"row 1: `ideal` must be a text"),
        (None, {"ideal": "a"}, r"row 1: `input` is neither"),
    ],
)
def test_another_format_is_one_line(tmp_path: Path, evals: str | None, row: dict[str, Any], problem: str) -> None:
    folder = registry(tmp_path / "evals", own=(f"{BASIC}.match:Match", {}, [row]))
    if evals is not None:
        (folder / "evals/own.yaml").write_text(evals)
    with pytest.raises(UserError, match=problem):
        run(folder, OracleSubject(reply=lambda chat: "a"))


def test_broken_samples_and_unknown_arguments_are_one_line(tmp_path: Path) -> None:
    folder = registry(
        tmp_path / "evals",
        own=(f"{BASIC}.match:Match", {}, ROWS),
        odd=(f"{BASIC}.match:Match", {"shots": 3}, ROWS),
    )
    with pytest.raises(UserError, match="evals/odd: its args have shots, which Match does not take here"):
        run(folder, OracleSubject(reply=knows), "odd")
    for text, problem in (("{broken", r"samples\.jsonl:1: broken JSON"), ("\n", r"samples\.jsonl: holds no row")):
        (folder / "data/own/samples.jsonl").write_text(text)
        with pytest.raises(UserError, match=problem):
            run(folder, OracleSubject(reply=knows), "own")
    (folder / "data/own/samples.jsonl").unlink()
    with pytest.raises(UserError, match="is not there; copy the registry's data"):
        run(folder, OracleSubject(reply=knows), "own")


def test_a_model_grades_with_scores_and_choices(tmp_path: Path) -> None:
    args = {"modelgraded_spec": "funny", "eval_type": "classify", "modelgraded_spec_args": {"tone": "dry"}}
    folder = registry(tmp_path / "evals", jokes=(GRADED, args, ROWS))

    def script(body: Body, _: int) -> Act:
        said = str(body["messages"][-1]["content"])
        return say("Yes." if "Paris" in said or "Lima" in said else "Who knows" if "Cairo" in said else "No\nYes")

    measured, server = graded(folder, script, OracleSubject(reply=knows), "jokes")
    # two Yes, three No, one that cannot be read: the lowest score
    assert value(measured, "evals/jokes", "score") == pytest.approx((2 * 1.0 + 3 * 0.25 + 0.25) / 6)
    assert value(measured, "evals/jokes", "choice/Yes") == pytest.approx(2 / 6)
    assert value(measured, "evals/jokes", f"choice/{INVALID}") == pytest.approx(1 / 6)
    assert len(server.chats) == 6, "openai/evals asks once"
    shown = next(body["messages"] for body in server.chats if "Lima" in str(body))
    assert shown[0] == {"role": "system", "content": "Judge jokes."}
    assert shown[1]["content"].startswith('Lima dry\n\nAnswer with one of "Yes" or "No" or "Unsure"')
    assert "graded by tiny as modelgraded/funny" in figure(measured, "evals/jokes", "score").protocol
    again, _ = graded(folder, script, OracleSubject(reply=lambda chat: "Paris"), "jokes")
    assert value(again, "evals/jokes", "score") == 1.0


def test_a_grade_without_scores_is_a_share_of_each_choice(tmp_path: Path) -> None:
    args = {"modelgraded_spec": "fact", "eval_type": "cot_classify"}
    folder = registry(tmp_path / "evals", facts=(GRADED, args, ROWS))
    measured, server = graded(folder, lambda body, _: say("It is not B.\n\n(A)"), OracleSubject(reply=knows), "facts")
    assert {one.metric for one in measured.figures} == {"choice/A", "choice/B", "choice/C", f"choice/{INVALID}"}
    assert value(measured, "evals/facts", "choice/A") == 1.0
    assert {row.score for row in measured.rows} == {None}
    text = next(str(body["messages"][-1]["content"]) for body in server.chats if "Kenya" in str(body))
    assert text.startswith(
        "[Question]: Be brief.\nUser: Capital of Kenya?\n\n"
        "[Expert]: ['Nairobi', 'It is Nairobi']\n[Submission]: Nairobi"
    )


def test_several_answers_and_labelled_ones(tmp_path: Path) -> None:
    many = {"modelgraded_spec": "stars", "multicomp_n": 3, "sample_kwargs": {"temperature": 0.4}}
    meta = {"modelgraded_spec": "stars", "metaeval": True}
    labelled = [asking("Joke?", completion="{Ha}", choice="4"), asking("Joke?", completion="Ho", choice="2")]
    folder = registry(tmp_path / "evals", many=(GRADED, many, ROWS[:1]), meta=(GRADED, meta, labelled))
    subject = OracleSubject(reply=knows)
    measured, server = graded(folder, lambda body, _: say("Hm.\n4"), subject, "many")
    assert value(measured, "evals/many", "score") == 4.0
    assert server.chats[0]["messages"][0]["content"] == "3 jokes:\nA) Paris\nB) Paris\nC) Paris"
    subject = OracleSubject(reply=knows)
    measured, server = graded(folder, lambda body, _: say("Hm.\n4"), subject, "meta")
    assert value(measured, "evals/meta", "metascore") == 0.5
    assert not subject.asked, "the samples bring their answers"
    assert any("{Ha}" in str(body["messages"]) for body in server.chats)


@pytest.mark.parametrize(
    ("eval_type", "text", "choice"),
    [
        ("cot_classify", "Yes, at first.\nNo, after all.\nUnsure.", "Unsure"),
        ("cot_classify", 'I think No is wrong.\n\n"Yes"\n\n', "Yes"),
        ("classify_cot", "No\nBecause Yes is wrong.\nYes", "No"),
        ("classify", "The answer is Yes", "Yes"),
        ("classify", "yes", None),
        ("classify", "...\n!", None),
        ("classify", "", None),
    ],
)
def test_choices_are_read_as_in_openai_evals(tmp_path: Path, eval_type: str, text: str, choice: str | None) -> None:
    args = {"modelgraded_spec": "funny", "eval_type": eval_type}
    folder = registry(tmp_path / "evals", jokes=(GRADED, args, ROWS))
    spec = read_spec(read_evals(folder)["jokes"])
    assert read_choice(Reply(text, "stop", None, 1, 1), spec) == choice


def test_specifications_that_are_wrong_are_one_line(tmp_path: Path) -> None:
    folder = registry(
        tmp_path / "evals",
        none=(GRADED, {"modelgraded_spec": "nowhere"}, ROWS),
        odd=(GRADED, {"modelgraded_spec": "fact", "eval_type": "guess"}, ROWS),
        lacks=(GRADED, {"modelgraded_spec": "funny"}, ROWS),
        several=(GRADED, {"modelgraded_spec": "stars", "multicomp_n": "from_models"}, ROWS),
    )
    problems = {
        "none": "nowhere: not there, and none needs it",
        "odd": r"fact: not a specification .*'guess'",
        "lacks": r"the grader's prompt wants a field that the sample lacks \('tone'\)",
        "several": "compares several models at once",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            graded(folder, lambda body, _: say("Yes"), OracleSubject(reply=knows), name)


def test_a_grader_that_is_gone_is_one_line(tmp_path: Path) -> None:
    folder = registry(tmp_path / "evals", facts=(GRADED, {"modelgraded_spec": "fact"}, ROWS))
    judge = EndpointParams(base_url="http://127.0.0.1:9/v1", model="tiny", api_key_env=None, retries=0)
    with pytest.raises(UserError, match=r"benchmark\.judge: nothing answers"):
        run(folder, OracleSubject(reply=knows), "facts", judge=judge)


def test_evals_go_by_the_name_that_points_to_them(tmp_path: Path) -> None:
    folder = registry(tmp_path / "evals", capitals=(f"{BASIC}.match:Match", {}, ROWS))
    entries = yaml.safe_load((folder / "evals/own.yaml").read_text())
    entries |= {"cities": {"id": "towns"}, "towns": {"id": "towns.test.v1"}}
    entries["towns.test.v1"] = entries["towns.dev.v0"] = entries["capitals.dev.v0"]
    (folder / "evals/own.yaml").write_text(yaml.safe_dump(entries))
    evals = read_evals(folder)
    assert {name: task.id for name, task in evals.items()} == {
        "capitals": "capitals.dev.v0",
        "cities": "towns.test.v1",
        "towns.dev.v0": "towns.dev.v0",
    }
    assert find_eval("towns.test.v1", evals, Settings()).name == "cities"
