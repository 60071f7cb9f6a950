"""Templates in Jinja: a model's own and a user's, beside transformers' rendering, in the sandbox, and by the door."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.instructions.deal import SPLITS
from stages.instructions.instruction import Instruction, Turn
from stages.instructions.jinja_templates import JinjaTemplate, find_template
from stages.instructions.prompts import TemplateMark, make_prompt, read_prompts, read_template_mark, write_prompts
from stages.instructions.templates import TEMPLATES, NoFormError, Segment, Template
from stages.pipeline.errors import UserError
from stages.tokens.labels import label
from stages.tokens.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.instructions.chat_templates import CHAT_TEMPLATES, ChatTemplate, Conversation, rendered_by_transformers
from tests.pipeline.test_bad_input import Project

NO_SYSTEM = {"mistral", "gemma"}
PLAIN = (ROOT / "data/templates/plain.jinja").read_text()
ONE_TURN = "### Task\n{{ instruction }}\n{% if input %}\n### Given\n{{ input }}\n{% endif %}\n### Answer\n"
HISTORY = (Turn("Hi!", "Hello."), Turn("Well?", "Yes."))
CONVERSATIONS = {
    "alone": Conversation("Add.", "", "3"),
    "input": Conversation("Add.", "1 2", "3"),
    "system": Conversation("Add.", "", "3", "Be brief."),
    "turns": Conversation("Add.", "1 2", "3", "", HISTORY),
    "all": Conversation("Add.", "1 2", "3", "Be brief.", HISTORY),
}


def compiled(source: str, **special_tokens: str) -> JinjaTemplate:
    return JinjaTemplate("own.jinja", source, special_tokens, "own.jinja")


def render(template: Template, row: Conversation) -> list[Segment]:
    return template.render(row.instruction, row.input, row.response, system=row.system, history=row.history)


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def texts_of(segments: list[Segment], role: str) -> list[str]:
    return [segment.text for segment in segments if segment.role == role]


MODELS = {name: compiled(shipped.source, **shipped.special_tokens) for name, shipped in CHAT_TEMPLATES.items()}


# ---- beside transformers


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_model_s_template_gives_what_transformers_gives(name: str, conversation: str) -> None:
    shipped, row = CHAT_TEMPLATES[name], CONVERSATIONS[conversation]
    expected = rendered_by_transformers(
        shipped.source, row.messages, date_string="26 Jul 2024", **shipped.special_tokens
    )
    if row.system and name in NO_SYSTEM:
        assert expected is None
        with pytest.raises(NoFormError, match=r"^it fails: .*(System role|roles must alternate)"):
            render(MODELS[name], row)
        return
    assert expected is not None
    segments = render(MODELS[name], row)
    assert joined(segments) == expected.rstrip()
    answers = [*(turn.response for turn in row.history), row.response]
    system, given = [row.system] * bool(row.system), [row.input] * bool(row.input)
    assert texts_of(segments, "response") == answers
    assert texts_of(segments, "user") == [*system, *(turn.user for turn in row.history), row.instruction, *given]
    at = [place for place, segment in enumerate(segments) if segment.role == "response"]
    assert [segments[place + 1].role for place in at] == ["end"] * len(answers)
    assert all(end.startswith(shipped.closing) for end in texts_of(segments, "end"))


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_every_answer_has_a_loss_and_nothing_else_has(name: str, tiny_llama: Path) -> None:
    tokenizer, row = Tokenizer(tiny_llama), CONVERSATIONS["turns"]
    segments = render(MODELS[name], row)
    examples = label([segments], tokenizer, 10_000)
    spoken = [segment.text for segment in segments if segment.role in ("response", "end")]
    prompt = [segment.text for segment in segments if segment.role in ("template", "user")]
    assert spoken[::2] == ["Hello.", "Yes.", "3"]
    end_of_text = "" if spoken[-1] == "<|im_end|>" else "<|im_end|>"  # the tiny model's
    assert tokenizer.decode(examples.tokens[examples.in_response]) == "".join(spoken) + end_of_text
    assert tokenizer.decode(examples.tokens[~examples.in_response]) == "".join(prompt)


def test_a_closing_is_never_cut_inside_a_control_token() -> None:
    row = Conversation("Add.", "", "3", "", HISTORY[:1])
    assert render(MODELS["phi3"], row) == [
        Segment("template", "<|user|>\n"),
        Segment("user", "Hi!"),
        Segment("template", "<|end|>\n<|assistant|>\n"),
        Segment("response", "Hello."),
        Segment("end", "<|end|>\n"),
        Segment("template", "<|user|>\n"),
        Segment("user", "Add."),
        Segment("template", "<|end|>\n<|assistant|>\n"),
        Segment("response", "3"),
        Segment("end", "<|end|>\n<|endoftext|>"),
    ]


@pytest.mark.parametrize(
    ("name", "end"), [("phi3", "<|end|>"), ("gemma", "<end_of_turn>"), ("llama3", ""), ("mistral", "")]
)
def test_the_end_that_answers_lose_stands_before_end_of_text(name: str, end: str) -> None:
    """Generation stops at end-of-text and leaves it out, so what precedes it must be found without it."""
    assert MODELS[name].end == end


def test_a_template_that_looks_into_a_text_is_no_form_for_what_it_would_change() -> None:
    with pytest.raises(NoFormError, match=r"^the text would be changed by it$"):
        MODELS["qwen3"].render("Add.", "", "<think>1 and 2</think>3")
    with pytest.raises(NoFormError, match=r"^the text would be changed by it$"):
        MODELS["llama3"].render(" Add.", "", "3")


# ---- which template a model has


def test_a_model_s_template_file_wins_over_its_settings(tmp_path: Path) -> None:
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": "{{ 1 }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATES["mistral"].source)
    template = find_template("model", tmp_path, tmp_path)
    golden = "<s>[INST] Hi! [/INST]Hello.</s> [INST] Add.\n\n1 2 [/INST]3</s>"
    assert joined(template.render("Add.", "1 2", "3", history=HISTORY[:1])) == golden


@pytest.mark.parametrize("several", [False, True])
def test_a_model_s_template_in_its_settings(tmp_path: Path, several: bool) -> None:
    source = CHAT_TEMPLATES["zephyr"].source
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": source}]
    settings = {"eos_token": "</s>", "chat_template": named if several else source}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    template = find_template("model", tmp_path, tmp_path)
    golden = "<|system|>\nBe brief.</s>\n<|user|>\nAdd.</s>\n<|assistant|>\n3</s>"
    assert joined(template.render("Add.", "", "3", system="Be brief.")) == golden


@pytest.mark.parametrize(
    "settings",
    [None, {}, {"chat_template": None}, {"chat_template": ""}, {"chat_template": [{"name": "rag", "template": "x"}]}],
)
def test_a_model_without_a_template(tmp_path: Path, settings: object) -> None:
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"^format\.template: {tmp_path} has no chat template; choose alpaca, phi3"):
        find_template("model", tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["model", "own.jinja"])
def test_a_template_that_is_not_utf_8(tmp_path: Path, name: str) -> None:
    path = tmp_path / ("chat_template.jinja" if name == "model" else name)
    path.write_bytes("{{ instruction }}\u00fc".encode("latin-1"))
    with pytest.raises(UserError, match=rf"^{path}: not UTF-8; convert the file$"):
        find_template(name, tmp_path, tmp_path)


# ---- a user's own


def test_the_shipped_example(tmp_path: Path) -> None:
    template = find_template("plain.jinja", tmp_path, ROOT / "data/templates")
    segments = template.render("Add.", "1 2", "3", system="Be brief.", history=HISTORY[:1])
    assert joined(segments) == "Be brief.\n\nQuestion: Hi!\nAnswer: Hello.\n\nQuestion: Add.\n\n1 2\nAnswer: 3"
    assert texts_of(segments, "response") == ["Hello.", "3"]
    assert template.end == ""


def test_a_template_of_one_turn_that_never_mentions_the_response() -> None:
    template = compiled(ONE_TURN)
    assert template.render("Add.", "1 2", "3") == [
        Segment("template", "### Task\n"),
        Segment("user", "Add."),
        Segment("template", "\n### Given\n"),
        Segment("user", "1 2"),
        Segment("template", "\n### Answer"),  # Jinja leaves out the line end at the end of a file
        Segment("response", "3"),
    ]
    assert joined(template.render("Add.", "", "")) == "### Task\nAdd.\n### Answer"
    with pytest.raises(NoFormError, match=r"^no form for several turns$"):
        template.render("Add.", "", "3", history=HISTORY)
    with pytest.raises(NoFormError, match=r"^no form for a system message$"):
        template.render("Add.", "", "3", system="Be brief.")


def test_a_template_of_the_prompt_alone() -> None:
    template = compiled("{% for message in messages[:-1] %}{{ message.content }}: {% endfor %}")
    assert joined(template.render("Add.", "", "3")) == "Add.: 3"
    with pytest.raises(NoFormError, match=r"^no form for a response$"):
        template.render("Add.", "", "3", history=HISTORY)


def test_a_template_that_leaves_the_input_out() -> None:
    template = compiled("{{ instruction }} -> {{ response }}{{ eos_token }}", eos_token="</s>")
    assert joined(template.render("Add.", "", "3")) == "Add. -> 3</s>"
    with pytest.raises(NoFormError, match=r"^no form for an input$"):
        template.render("Add.", "1 2", "3")


def test_a_template_that_shows_the_response_to_some_rows_only() -> None:
    template = compiled("{{ instruction }}{% if response != 'secret' %}: {{ response }}{% endif %}")
    assert joined(template.render("Add.", "", "3")) == "Add.: 3"
    with pytest.raises(NoFormError, match=r"^the text would be changed by it$"):
        template.render("Add.", "", "secret")


def test_lower_case_is_a_form_for_what_is_in_lower_case() -> None:
    template = compiled("{{ instruction | lower }}\n{{ response }}")
    assert joined(template.render("add", "", "A")) == "add\nA"
    with pytest.raises(NoFormError, match=r"^the text would be changed by it$"):
        template.render("Add.", "", "A")


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_bytes(ONE_TURN.encode())
    (tmp_path / "b.jinja").write_bytes(b"\xef\xbb\xbf" + ONE_TURN.replace("\n", "\r\n").encode())
    ours, theirs = (find_template(name, tmp_path, tmp_path) for name in ("a.jinja", "b.jinja"))
    assert ours.render("Add.", "1 2", "3") == theirs.render("Add.", "1 2", "3")


REFUSED = {
    "": "no form for an instruction",
    "{{ response }}": "no form for an instruction",
    "{{ instrution }}{{ response }}": "no form for an instruction",
    "{{ instruction | upper }}{{ response }}": "no form for an instruction",
    "{{ messages }}": "no form for an instruction",
    "{{ response }}{{ instruction }}": "it shows texts twice or out of order",
    "{{ instruction }}{{ response }}{{ response }}": "it shows texts twice or out of order",
    "{{ instruction }}{{ response }}{{ instruction }}": "it shows texts twice or out of order",
}
"""Templates that drop or repeat a text."""


@pytest.mark.parametrize("source", REFUSED)
def test_a_template_that_is_a_form_for_no_row(source: str) -> None:
    with pytest.raises(UserError) as caught:
        compiled(source)
    assert str(caught.value) == f"own.jinja: {REFUSED[source]}, even for a lone instruction; mend the template"


# ---- the sandbox

FORBIDDEN = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "'__class__' of a str",
    "{{ instruction.__class__ }}": "'__class__' of a str",
    "{{ instruction['__class__'] }}": "'__class__' of a str",
    "{{ instruction | attr('__class__') }}": "'__class__' of a str",
    "{{ '{0.__class__}'.format(instruction) }}": "'__class__' of a str",
    "{{ [instruction] | map(attribute='__class__') | list }}": "'__class__' of a str",
    "{{ raise_exception.__globals__ }}": "'__globals__' of a function",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "'__init__' of a type",
    "{{ lipsum.__globals__['os'] }}": "'__globals__' of a function",
    "{{ self.__dict__ }}": "'__dict__'",
    "{{ messages.append(1) }}": "'append' of a list",
    "{{ messages[0].update(content='') }}": "'update' of a dict",
    "{{ __import__('os') }}": "'__import__' is undefined",
    "{{ open('params.yaml').read() }}": "'open' is undefined",
    "{% include 'params.yaml' %}": "no loader",
    "{{ strftime_now('%Y') }}": "'strftime_now' is undefined",  # a prompt that changes daily could not be cached
}
BROKEN = {
    "{{ nothing.at_all }}": "'nothing' is undefined",
    "{{ instruction + eos_token }}": "'eos_token' is undefined",
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages[0].content + 1 }}": "can only concatenate str",
    "{{ range(1000000000) | list }}": "Range too big",
    "{{ 'x' * 10 ** 15 }}": "MemoryError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{{ raise_exception('No\nway\n') }}": "it fails: No way,",
    "{{ raise_exception('') }}": "it fails: TemplateError,",
}
INVALID = {
    "{% for %}": ":1: Jinja error: Expected an expression",
    "\n\n{{ instruction }": ":3: Jinja error: unexpected '}'",
    "{{ instruction }}\n{% if x %}": ":2: Jinja error: Unexpected end of template",
    "{{ instruction | shout }}": ":1: Jinja error: No filter named 'shout'",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": ": Jinja error: maximum recursion depth exceeded",
    "{% for a in 'b' %}" * 30 + "{% endfor %}" * 30: ": Jinja error: too many statically nested blocks",
}


@pytest.mark.parametrize("source", [*FORBIDDEN, *BROKEN])
def test_a_template_that_fails_is_told_in_one_line(source: str) -> None:
    with pytest.raises(UserError) as caught:
        compiled("{{ instruction }}" + source)
    error = str(caught.value)
    assert error.startswith("own.jinja: it fails: ")
    assert error.endswith(", even for a lone instruction; mend the template")
    assert "\n" not in error
    assert (FORBIDDEN | BROKEN)[source] in error
    assert ("is forbidden" in error) == (" of a " in error)


@pytest.mark.parametrize("source", INVALID, ids=lambda source: source[:20])
def test_a_template_that_is_no_jinja_is_told_in_one_line(source: str) -> None:
    with pytest.raises(UserError) as caught:
        compiled(source)
    error = str(caught.value)
    assert error.startswith(f"own.jinja{INVALID[source]}")
    assert error.endswith("; mend the template")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if 1 / (instruction | length - 4) %}{% endif %}", "it fails: division by zero"),
        ("{% if instruction == 'Add.' %}{{ instruction.__class__ }}{% endif %}", "it fails: access to '__class__'"),
        ("{% if instruction == 'Add.' %}{{ raise_exception('Not\nso.') }}{% endif %}", "it fails: Not so."),
    ],
)
def test_a_template_that_fails_on_one_row_is_no_form_for_that_row(source: str, reason: str) -> None:
    template = compiled(source + "{{ instruction }}: {{ response }}")
    assert joined(template.render("Subtract.", "", "3")) == "Subtract.: 3"
    with pytest.raises(NoFormError, match=f"^{reason}"):
        template.render("Add.", "", "3")


def test_what_transformers_gives_a_template() -> None:
    source = (
        "{% if tools is not none or documents is not none or add_generation_prompt or strftime_now is defined %}no"
        "{% endif %}{% for message in messages %}{% if message.role == 'tool' %}{% continue %}{% endif %}\n"
        "    {% if true %}{# lines of blocks and their indents are left out #}\n    {% endif %}\n"
        "{{ {'b': 1, 'a': '\u00fc<'} | tojson(separators=(',', ':'), sort_keys=true) }}{{ message.content }}"
        "{% endfor %}"
    )
    row = CONVERSATIONS["input"]
    plain = source.replace(" or strftime_now is defined", "")  # which it gives, and we do not
    segments = render(compiled(source), row)
    assert joined(segments) == rendered_by_transformers(plain, row.messages)
    assert texts_of(segments, "template") == ['{"a":"\u00fc<","b":1}', "\n\n", '{"a":"\u00fc<","b":1}']


# ---- for any text

TRICKS = [
    "{{ 7*7 }}",
    "{% raw %}",
    "{% endraw %}{{ instruction }}",
    "{# x #}",
    "<|im_end|>\n<|im_start|>assistant\n",
    "</s>",
    "[/INST]",
    "<|end|>",
    "\uf8f0",
    "\uf8f1",
    "\uf8f0response\uf8f1",
    "\uf8f0instruction\uf8f1",
    "response0",
    "</think>",
    "\\n",
    "%s {} {0.__class__}",
]
TEXTS = st.lists(st.sampled_from(TRICKS) | st.text(max_size=8), max_size=4).map("".join)
SAID = TEXTS.map(lambda text: text or "Add.")
ROWS = st.builds(
    Conversation,
    instruction=SAID,
    input=TEXTS,
    response=TEXTS,
    system=st.just("") | TEXTS,
    history=st.lists(st.builds(Turn, SAID, SAID), max_size=2).map(tuple),
)


def untouched(row: Conversation) -> bool:
    """Whether trimming, or the search for a thought, changes no text."""
    texts = [
        row.instruction,
        row.input or "x",
        row.response,
        row.system or "x",
        *(t for turn in row.history for t in turn),
    ]
    return all(text and text == text.strip() and "</think>" not in text for text in texts)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*CHAT_TEMPLATES, "plain"]), ROWS)
def test_data_is_shown_as_it_is_or_not_at_all(name: str, row: Conversation) -> None:
    shipped = CHAT_TEMPLATES[name] if name != "plain" else ChatTemplate(PLAIN, "", "", "")
    template = MODELS[name] if name != "plain" else compiled(PLAIN)
    expected = rendered_by_transformers(
        shipped.source, row.messages, date_string="26 Jul 2024", **shipped.special_tokens
    )
    try:
        segments = render(template, row)
    except NoFormError:
        assert expected is None or not untouched(row)
        return
    assert expected is not None
    assert joined(segments).rstrip() == expected.rstrip()
    assert texts_of(segments, "response") == [*(turn.response for turn in row.history), row.response]
    spoken = [row.system, *(turn.user for turn in row.history), row.instruction, row.input]
    assert [text for text in texts_of(segments, "user") if text] == [text for text in spoken if text]


FRAGMENTS = [
    *("{{ instruction }}", "{{ input }}", "{{ response }}", "{{ system }}", "{{ bos_token }}", "text\n"),
    *("{% for message in messages %}", "{% endfor %}", "{{ message.content }}", "{{ message.role }}\n"),
    *("{% if system %}", "{% if loop.first %}", "{% if messages | length > 2 %}", "{% else %}", "{% endif %}"),
    *("{{ messages[2].content }}", "{{ messages[0]['content'] | trim }}", "{{ message | tojson }}"),
    *("{% set x = 1 %}", "{{ x / 0 }}", "{{ x.__class__ }}", "{% macro f(y) %}", "{% endmacro %}", "{{ f(f) }}"),
    *("{% generation %}", "{% endgeneration %}", "{% break %}", "{%", "}}", "{{ raise_exception(x) }}"),
]
FOR_EACH = "{% for message in messages %}{{ message.role + ': ' + message.content }}\n{% endfor %}"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8), st.sampled_from(["", FOR_EACH]), ROWS)
def test_no_template_does_more_than_be_refused(fragments: list[str], middle: str, row: Conversation) -> None:
    half = len(fragments) // 2
    source = "".join([*fragments[:half], middle, *fragments[half:]])
    segments, refused = [], ""
    try:
        segments = render(compiled(source, bos_token="<s>"), row)
    except (UserError, NoFormError) as error:
        refused = str(error)
    if refused:
        assert len(refused.splitlines()) == 1
        return
    variables = {"instruction": row.instruction, "input": row.input, "system": row.system, "response": row.response}
    theirs = rendered_by_transformers(source, row.messages, bos_token="<s>", **variables)
    assert theirs is not None
    assert joined(segments).rstrip() in (theirs.rstrip(), (theirs + row.response).rstrip())
    assert texts_of(segments, "response")[-1] == row.response


# ---- hashes


def test_the_hash_changes_with_all_that_shapes_a_prompt(tmp_path: Path) -> None:
    def hash_of(name: str, source: str, tokens: dict[str, object]) -> str:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
        (tmp_path / name).write_text(source)
        return find_template(name, tmp_path, tmp_path).hash

    first = hash_of("a.jinja", ONE_TURN, {"eos_token": "</s>"})
    others = [
        hash_of("b.jinja", ONE_TURN, {"eos_token": "</s>"}),
        hash_of("a.jinja", f" {ONE_TURN}", {"eos_token": "</s>"}),
        hash_of("a.jinja", ONE_TURN, {"eos_token": "<|end|>"}),
        hash_of("a.jinja", ONE_TURN, {"bos_token": "</s>"}),
        TEMPLATES["alpaca"].hash,
    ]
    assert len({first, *others}) == 6
    assert hash_of("a.jinja", ONE_TURN, {"vocab": 7, "eos_token": {"content": "</s>", "lstrip": False}}) == first


# ---- by the door


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    messages = [message for row in CONVERSATIONS.values() if row.history for message in [row.messages]]
    rows = [{"messages": CONVERSATIONS["alone"].messages}, *({"messages": row} for row in messages)]
    project.write("data/raw/rows.jsonl", "\n".join(map(json.dumps, rows)))
    return project


def succeeds(project: Project, stage: str) -> None:
    """Run a stage in the folder of a project."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", f"stages.{stage}"]
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["{{ instruction }}\n{% if %}", "{{ instruction.__class__.__mro__ }}"])
def test_format_with_a_bad_template(project: Project, source: str) -> None:
    path = project.write("data/templates/bad.jinja", source)
    project.set("format", template="bad.jinja")
    expected = f"{path}:2: Jinja error: " if "if" in source else f"{path}: it fails: access to '__class__' of a str"
    project.fails("format", expected, "mend the template")


@pytest.mark.parametrize("name", ["none.jinja", "own", "../templates/own.jinja", ""])
def test_format_with_an_unknown_template(project: Project, name: str) -> None:
    project.write("data/templates/own.jinja", ONE_TURN)
    project.set("format", template=name)
    project.fails("format", f"no template '{name}'; known: alpaca, phi3, chatml, model, own.jinja; yours go into ")


def test_format_with_a_good_template(project: Project) -> None:
    project.write("data/templates/own.jinja", FOR_EACH)
    project.set("format", template="own.jinja")
    succeeds(project, "format")
    prompts = read_prompts(project.folder / "data/prompts.parquet")
    assert [joined(prompt.segments) for prompt in prompts][:2] == [
        "user: Add.\nassistant: 3",
        "user: Hi!\nassistant: Hello.\nuser: Well?\nassistant: Yes.\nuser: Add.\n\n1 2\nassistant: 3",
    ]
    # Another process, with other hashes of Python's own, comes to the same.
    expected = find_template("own.jinja", project.folder, project.folder / "data/templates")
    assert read_template_mark(project.folder / "data/prompts.parquet") == TemplateMark("own.jinja", expected.hash, "")


def test_rows_without_a_form_are_rejected_with_the_reason(project: Project) -> None:
    project.set("format", template="alpaca")
    succeeds(project, "format")
    rejected = [json.loads(line) for line in (project.folder / "data/rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rejected] == [
        (2, "template alpaca: no form for several turns"),
        (3, "template alpaca: no form for a system message"),
    ]
    assert pq.read_metadata(project.folder / "data/prompts.parquet").num_rows == 1


def test_splits_of_two_templates_are_refused(project: Project) -> None:
    project.write_base_model()
    project.set("collate", max_seq_len=64)
    for split in SPLITS:
        template = TEMPLATES["phi3" if split == "test" else "chatml"]
        mark = TemplateMark(template.name, template.hash, template.end)
        path = project.write(f"data/split/{split}.parquet")
        write_prompts(path, [make_prompt(Instruction("Add 1 and 2.", "3"), template)], mark)
    project.fails("tokenize_and_collate", project.folder / "data/split", "different templates", "dvc repro")
