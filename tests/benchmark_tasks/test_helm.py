"""HELM: its files as crfm-helm 0.5.16 writes them, with invented figures, and a stand-in for helm-run that does so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.benchmarks import helm
from stages.benchmarks.benchmark import Settings
from stages.benchmarks.helm import Helm, read_entries
from stages.benchmarks.helm_results import LIBRARY, read_run
from stages.pipeline.errors import UserError
from tests.benchmark_tasks.oracles import OracleSubject

HOW = Settings(resamples=200)
RUN = "mmlu:subject=anatomy,method=multiple_choice_joint,model=onset_base"
RIGHT = {"id1": 1, "id2": 0, "id3": 1, "id4": 1}
PERTURBATION = {"name": "robustness", "robustness": True, "fairness": False, "computed_on": "worst"}


def stat(name: str, mean: float, split: str = "test", **more: Any) -> dict[str, Any]:
    return {"name": {"name": name, "split": split, **more}, "count": 1, "sum": mean, "mean": mean, "variance": 0.0}


def request(instance: str, said: str, split: str = "test", **more: Any) -> dict[str, Any]:
    references = [{"output": {"text": "bone"}, "tags": []}, {"output": {"text": "heart"}, "tags": ["correct"]}]
    return {
        "instance": {"input": {"text": "?"}, "references": references, "split": split, "id": instance, **more},
        "train_trial_index": 0,
        "output_mapping": {"A": "bone", "B": "heart"},
        "request": {"model": "onset/base", "prompt": f"Question {instance}\nAnswer:", "max_tokens": 1},
        "result": {"success": True, "completions": [{"text": said, "logprob": -0.1, "tokens": []}]},
    }


def write_run(folder: Path, name: str = RUN) -> None:
    """One run of four test rows and one of validation, once more with the model's input perturbed."""
    folder.mkdir(parents=True)
    files = {
        "run_spec.json": {"name": name, "adapter_spec": {"method": "multiple_choice_joint", "max_train_instances": 5}},
        "stats.json": [
            stat("exact_match", 0.0, "valid"),
            stat("exact_match", 0.25, perturbation=PERTURBATION),
            stat("exact_match", 0.75),
            stat("quasi_exact_match", 0.75),
            stat("bits_per_byte", 0.0),
            stat("num_prompt_tokens", 340.0),
            stat("num_instances", 4.0),
            stat("num_instances", 1.0, "valid"),
        ],
        "per_instance_stats.json": [
            {"instance_id": name, "train_trial_index": 0, "stats": [stat("exact_match", right)]}
            for name, right in RIGHT.items()
        ]
        + [
            {"instance_id": "id5", "train_trial_index": 0, "stats": [stat("exact_match", 0, "valid")]},
            {"instance_id": "id1", "perturbation": PERTURBATION, "stats": [stat("exact_match", 0)]},
        ],
        "scenario_state.json": {
            "adapter_spec": {},
            "request_states": [request(name, "B" if right else "A") for name, right in RIGHT.items()]
            + [request("id5", "A", "valid"), request("id1", "A", perturbation=PERTURBATION)],
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2))


def test_a_run_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = read_run(tmp_path / "run", "base", HOW)
    first, second = found.figures
    assert (first.metric, second.metric) == ("exact_match", "quasi_exact_match")
    assert first.task == "helm/mmlu:subject=anatomy,method=multiple_choice_joint"
    assert (first.value, first.n, first.shots, first.model) == (0.75, 4, 5, "base")
    assert (first.scope, first.template, first.library) == ("sample", "none", "crfm-helm 0.5.16")
    assert first.low is not None
    assert first.high is not None
    assert first.low < 0.75 <= first.high
    assert (second.low, second.high) == (None, None)
    assert {row.id: row.score for row in found.rows} == RIGHT
    assert (found.rows[1].response, found.rows[1].target) == ("A", "B")
    assert found.rows[1].prompt == "Question id2\nAnswer:"


def test_the_validation_split_counts_where_there_is_no_other(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "run/stats.json"
    stats = [one for one in json.loads(path.read_text()) if one["name"]["split"] == "valid"]
    path.write_text(json.dumps(stats))
    (figure,) = read_run(tmp_path / "run", "base", HOW).figures
    assert (figure.value, figure.n) == (0.0, 1)
    assert "valid split" in figure.protocol
    path.write_text(json.dumps([stat("num_instances", 4.0), stat("toxicity", 0.1)]))
    with pytest.raises(UserError, match=r"none of exact_match, .* is in HELM's stats.json"):
        read_run(tmp_path / "run", "base", HOW)


# ---- helm-run

STAND_IN = f"""#!{sys.executable} -S
import argparse, json, os, shutil, sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--run-entries", nargs="+")
for name in ("--local-path", "--output-path", "--suite", "--max-eval-instances", "--num-threads"):
    parser.add_argument(name)
for name in ("--disable-cache", "--exit-on-error"):
    parser.add_argument(name, action="store_true")
told = vars(parser.parse_args())
told["offline"] = os.environ["HF_HUB_OFFLINE"]
told["config"] = {{{{path.name: json.loads(path.read_text()) for path in Path(told["local_path"]).iterdir()}}}}
told["scenarios"] = sorted(path.name for path in Path(told["output_path"], "scenarios/mmlu/data/test").iterdir())
Path({{told!r}}).write_text(json.dumps(told))
for entry in told["run_entries"]:
    if "broken" in entry:
        sys.exit("ValueError: Unknown run spec name: broken")
    folder = Path(told["output_path"], "runs", told["suite"], entry.replace("/", "_"))
    shutil.copytree({{template!r}}, folder)
    text = (folder / "run_spec.json").read_text().replace({RUN!r}, entry.replace("/", "_"))
    (folder / "run_spec.json").write_text(text)
    print(f"Writing 52664 characters to {{{{folder}}}}/stats.json")
"""


class Checkpoint(OracleSubject):
    """A subject with a folder, as the pipeline's are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(template="chatml")
        self.folder = folder


@pytest.fixture
def subject(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "bos_token": null}')
    return Checkpoint(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "helm"
    (folder / "scenarios/mmlu/data/test").mkdir(parents=True)
    (folder / "scenarios/mmlu/data/test/anatomy_test.csv").write_text("Which?,bone,heart,a,b,B\n")
    (folder / "run_entries.txt").write_text(
        "# anatomy and algebra\nmmlu:subject=anatomy,model=text\nmmlu:subject=algebra\n"
    )
    return folder


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes what it was told."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    program, path = tmp_path / ".venv-helm/bin/helm-run", tmp_path / "told.json"
    program.parent.mkdir(parents=True)
    write_run(tmp_path / "template")
    program.write_text(STAND_IN.format(told=str(path), template=str(tmp_path / "template")))
    program.chmod(0o755)
    (tmp_path / ".venv-helm/installed").touch()
    return path


def test_entries_are_run_on_the_checkpoint(data: Path, subject: Checkpoint, told: Path, tmp_path: Path) -> None:
    assert Helm().find(data).rows == {"mmlu:subject=anatomy": 1, "mmlu:subject=algebra": 1}
    found = Helm().measure([subject], data, [], HOW._replace(limit=5), tmp_path)
    tasks = ["helm/mmlu:subject=algebra", "helm/mmlu:subject=anatomy"]
    assert [figure.task for figure in found.figures if figure.metric == "exact_match"] == tasks
    assert len(found.rows) == 8
    said = json.loads(told.read_text())
    assert said["run_entries"] == [f"{entry},model=onset/fine-tuned" for entry in Helm().find(data).rows]
    assert (said["max_eval_instances"], said["offline"]) == ("5", "1")
    assert said["scenarios"] == ["anatomy_test.csv"]
    (deployment,) = said["config"]["model_deployments.yaml"]["model_deployments"]
    assert deployment["max_sequence_length"] == 512
    assert deployment["client_spec"]["args"] == {"pretrained_model_name_or_path": str(subject.folder)}
    (tokenizer,) = said["config"]["tokenizer_configs.yaml"]["tokenizer_configs"]
    assert (tokenizer["end_of_text_token"], tokenizer["prefix_token"]) == ("</s>", "")
    Helm().measure([subject], data, ["mmlu:subject=algebra"], HOW, tmp_path)
    assert json.loads(told.read_text())["run_entries"] == ["mmlu:subject=algebra,model=onset/fine-tuned"]


def test_what_helm_run_says_last_is_told(data: Path, subject: Checkpoint, told: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="helm-run failed: ValueError: Unknown run spec name: broken"):
        Helm().measure([subject], data, ["broken"], HOW, tmp_path)
    assert json.loads(told.read_text())["run_entries"] == ["broken:model=onset/fine-tuned"]


def test_without_its_environment_one_line_tells_the_command(
    data: Path, subject: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=r"HELM is not installed; run `python -m stages.benchmark install helm`"):
        Helm().measure([subject], data, [], HOW, tmp_path)


def test_only_a_checkpoint_can_be_measured(data: Path, subject: Checkpoint, told: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the fine-tuned model is no checkpoint folder"):
        Helm().measure([OracleSubject()], data, [], HOW, tmp_path)
    (subject.folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no max_position_embeddings"):
        Helm().measure([subject], data, [], HOW, tmp_path)
    assert not told.exists()


def test_entries_of_a_conf_file_and_bad_ones(tmp_path: Path) -> None:
    assert read_entries(tmp_path) == []
    path = tmp_path / "run_entries.conf"
    path.write_text(
        'entries: [\n  # {description: "raft:model=text", priority: 1}\n'
        '  {description: "boolq:model=text,data_augmentation=canonical", priority: 1}\n'
        '  {description: "imdb:model=text", priority: 2, groups: ["x"]},\n]\n'
    )
    assert read_entries(tmp_path) == ["boolq:data_augmentation=canonical", "imdb"]
    path.write_text('{description: "code:dataset=humaneval,model=text"}')
    with pytest.raises(UserError, match="HELM would run code of the model's without a sandbox"):
        read_entries(tmp_path)
    path.write_text("entries: []")
    with pytest.raises(UserError, match="holds no run entry"):
        read_entries(tmp_path)
    path.write_text('{description: "imdb:model=a"}\n{description: "imdb:model=b"}')
    with pytest.raises(UserError, match="imdb: mend this entry"):
        read_entries(tmp_path)


# ---- its environment


def test_the_environment_is_made_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def done(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / ".venv-helm/packages").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0, stdout=f"{tmp_path / '.venv-helm/packages'}\n")

    monkeypatch.setattr(subprocess, "run", done)
    helm.install(tmp_path)
    assert [command[1] for command in commands] == ["-m", "-c", "-m", "--help"]
    assert {"--no-deps", str(helm.REQUIREMENTS)} <= set(commands[2])
    assert (tmp_path / ".venv-helm/packages/onset.pth").read_text().endswith("site-packages\n")
    assert (tmp_path / ".venv-helm/installed").exists()


def test_a_failed_step_leaves_it_uninstalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UserError, match=r"`false -m venv .*failed; run it by hand"):
        helm.install(tmp_path)
    assert not (tmp_path / ".venv-helm/installed").exists()


def test_all_it_wants_is_pinned() -> None:
    lines = [line for line in helm.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert LIBRARY.replace(" ", "==") in lines
    assert all(line.count("==") == 1 for line in lines)
    assert not {line.split("==")[0] for line in lines} & {"torch", "torchvision", "transformers"}
