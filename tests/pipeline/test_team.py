"""A project of two people: what is pushed is what the other gets, and nothing is computed twice."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import pytest
import yaml
from moto.server import ThreadedMotoServer

from tests.conftest import ROOT
from tests.pipeline.projects import commit, git, ran, repro, set_parameter, write_lines

BIN = Path(sys.executable).parent
EXAMPLES = ROOT / ".ci/examples"
KEYS = {"AWS_ACCESS_KEY_ID": "ada", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "DVC_"))}
    return kept | {"PATH": f"{BIN}:{kept['PATH']}", "DVC_NO_ANALYTICS": "1"} | more


def start(folder: Path, *command: str, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=folder, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def dvc(folder: Path, *arguments: str, **more: str) -> str:
    """What a command of DVC prints."""
    with start(folder, "dvc", *arguments, **more) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def refused(folder: Path, *arguments: str, **more: str) -> str:
    """What a command of DVC prints that fails."""
    with start(folder, "dvc", *arguments, **more) as process:
        printed, _ = process.communicate()
    assert process.returncode != 0, printed
    return printed


class Team(NamedTuple):
    """A hub for git, and where it is; Ada's project is pushed to it, and her data to a folder."""

    folder: Path
    hub: Path
    ada: Path

    def clone(self, name: str, branch: str = "main") -> Path:
        git(self.folder, "clone", "-q", "-b", branch, str(self.hub), name)
        git(self.folder / name, "config", "user.name", name)
        git(self.folder / name, "config", "user.email", "someone@example.org")
        return self.folder / name


@pytest.fixture(scope="module")
def team(copy_of_finished: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Team:
    folder = tmp_path_factory.mktemp("Übung") / "of a team"
    folder.mkdir()
    hub, ada = folder / "hub.git", copy_of_finished(folder / "Ada's")
    git(folder, "init", "-q", "--bare", "-b", "main", str(hub))
    git(ada, "checkout", "-q", "-b", "main")
    dvc(ada, "remote", "add", "--default", "team", "../data of all")  # its config is ASCII alone
    commit(ada, "where the data is")
    git(ada, "remote", "add", "origin", str(hub))
    git(ada, "push", "-q", "origin", "main")
    assert "files pushed" in dvc(ada, "push")
    return Team(folder, hub, ada)


@pytest.fixture(scope="module")
def bob(team: Team) -> Path:
    """Bob's clone, with all data, and an experiment of his pushed for Ada."""
    bob = team.clone("Bob's")
    assert ran(repro(bob, "--pull")) == []
    assert git(bob, "status", "--short") == ""
    assert_alike(bob, team.ada)
    assert ran(dvc(bob, "exp", "run", "-n", "surer", "-S", "judge.confidence=0.9")) == ["judge"]
    dvc(bob, "exp", "push", "origin", "surer")
    return bob


def assert_alike(one: Path, other: Path) -> None:
    """All data, metrics, parameters and the record of them are the same bytes."""
    files = [path for path in (*one.glob("data/**/*"), *one.glob("metrics/*")) if path.is_file()]
    assert len(files) > 30
    for path in [*files, one / "dvc.lock", one / "params.yaml"]:
        if path.name != "speed.json":
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path


def test_an_experiment_of_one_is_the_other_s_without_a_run(team: Team, bob: Path) -> None:
    dvc(team.ada, "exp", "pull", "origin", "surer")
    dvc(team.ada, "exp", "apply", "surer")
    assert ran(repro(team.ada)) == []
    assert_alike(bob, team.ada)
    assert json.loads((team.ada / "metrics/judge.json").read_text())["confidence"] == 0.9
    git(team.ada, "checkout", "-q", "--", ".")
    dvc(team.ada, "checkout", "-q")


def test_an_object_that_is_gone_comes_from_the_remote(bob: Path) -> None:
    lock = yaml.safe_load((bob / "dvc.lock").read_text())
    md5 = next(out["md5"] for out in lock["stages"]["judge"]["outs"] if out["path"] == "data/scores.parquet")
    before = (bob / "data/scores.parquet").read_bytes()
    (bob / "data/scores.parquet").unlink()
    (bob / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}").unlink()
    assert "Is your cache up to date?" in refused(bob, "checkout")
    assert ran(repro(bob, "--pull")) == []
    assert (bob / "data/scores.parquet").read_bytes() == before


def test_the_same_through_s3_and_what_is_seen_when_it_is_down(team: Team, bob: Path) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        urlopen(Request(f"{url}/team", method="PUT")).close()  # the bucket
        cleo = team.clone("Cleo's")
        for person in (bob, cleo):
            dvc(person, "remote", "add", "--local", "--default", "s3", "s3://team/onset")
            dvc(person, "remote", "modify", "--local", "s3", "endpointurl", url)
        dvc(bob, "exp", "push", "origin", "surer", **KEYS)
        dvc(cleo, "exp", "pull", "origin", "surer", **KEYS)
        dvc(cleo, "exp", "apply", "surer")
        assert ran(repro(cleo, "--pull", **KEYS)) == []
        assert_alike(cleo, bob)
    finally:
        server.stop()
    write_lines(bob / "notes", ["new"])
    dvc(bob, "add", "notes")
    printed = refused(bob, "push", "notes", AWS_MAX_ATTEMPTS="1", **KEYS)
    assert f'Could not connect to the endpoint URL: "{url}' in printed
    assert ran(repro(bob)) == [], "work goes on"
    dvc(bob, "config", "--local", "--unset", "core.remote")


def test_two_push_at_once_and_nothing_is_lost(team: Team) -> None:
    people = [team.clone(name) for name in ("Dora's", "Eve's")]
    for number, person in enumerate(people):
        dvc(person, "pull", "-q")
        write_lines(person / "notes", [str(number)])
        dvc(person, "add", "notes")
        git(person, "add", "-A")
        dvc(person, "exp", "save", "-n", f"note-{number}")
    pushing = [start(who, "dvc", "exp", "push", "origin", f"note-{at}") for at, who in enumerate(people)]
    for process in pushing:
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
    for number, person in enumerate(people):
        commit(person, f"note {number}")
    pushing = [start(person, "git", "push", "origin", "main") for person in people]
    outputs = [process.communicate()[0] for process in pushing]
    assert sorted(process.returncode for process in pushing) == [0, 1], outputs
    assert "rejected" in "".join(outputs)
    frida = team.clone("Frida's")
    dvc(frida, "exp", "pull", "origin", "note-0", "note-1")
    for number in range(2):
        dvc(frida, "exp", "apply", f"note-{number}")
        assert (frida / "notes").read_text() == f"{number}\n"
        git(frida, "reset", "-q", "--hard")
    git(team.ada, "push", "-q", "--force", "origin", "main")  # as it was


def test_own_data_by_dvc_add_and_import_url(copy_of_finished: Callable[[Path], Path], tmp_path: Path) -> None:
    project, shared = copy_of_finished(tmp_path / "project"), tmp_path / "shared.jsonl"
    own = project / "data/raw/instructions.jsonl"

    def rows() -> dict[str, int]:
        files = json.loads((project / "metrics/format.json").read_text())["files"]
        return {name: file["rows"] for name, file in files.items()}

    before, lines = rows(), [json.dumps({"instruction": f"Say {n}.", "output": f"{n}!"}) for n in range(3)]
    write_lines(shared, lines[:2])
    git(project, "rm", "-q", "--cached", str(own))
    dvc(project, "add", str(own))
    dvc(project, "import-url", str(shared), "data/raw/shared.jsonl")
    assert ran(repro(project, "format")) == ["format"]
    assert rows() == before | {"shared.jsonl": 2}
    commit(project, "data is DVC's")
    assert git(project, "ls-files", "data/raw").split() == [
        "data/raw/.gitignore", "data/raw/README.md", "data/raw/instructions.jsonl.dvc", "data/raw/shared.jsonl.dvc",
        "data/raw/talks.jsonl",
    ]  # fmt: skip
    write_lines(shared, lines)
    assert ran(repro(project, "format")) == [], "what is imported stays as it is"
    dvc(project, "update", "data/raw/shared.jsonl.dvc")
    assert ran(repro(project, "format")) == ["format"]
    assert rows() == before | {"shared.jsonl": 3}


# ---- the examples of continuous integration


def github_steps() -> list[str]:
    (job,) = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())["jobs"].values()
    steps = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    assert "make setup" in steps.pop("Set up")
    return list(steps.values())


def gitlab_steps() -> list[str]:
    (job,) = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text()).values()
    assert "make setup" in job["before_script"]
    lines: list[str] = job["script"]
    return lines


def stand_in(folder: Path, name: str) -> Path:
    """A program of this name that writes down its arguments, one a line; that file."""
    folder.mkdir(exist_ok=True)
    program, called = folder / name, folder / f"{name}.called"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{called}"\n')
    program.chmod(0o755)
    return called


def run_steps(clone: Path, steps: list[str], programs: Path, **variables: str) -> str:
    path = f"{programs}:{BIN}:{os.environ['PATH']}"
    printed = ""
    for step in steps:
        with start(clone, "bash", "-eo", "pipefail", "-c", step, **variables | {"PATH": path}) as process:
            said, _ = process.communicate()
        assert process.returncode == 0, said
        printed += said
    return printed


@pytest.fixture
def idea(team: Team) -> Iterator[str]:
    """A branch whose results nobody has computed."""
    git(team.ada, "checkout", "-q", "-b", "idea")
    set_parameter(team.ada, "judge.confidence", 0.8)
    commit(team.ada, "less sure")
    git(team.ada, "push", "-q", "origin", "idea")
    yield "idea"
    git(team.ada, "checkout", "-q", "main")


def test_the_examples_of_ci_reproduce_compare_and_keep(team: Team, idea: str, tmp_path: Path) -> None:
    called = stand_in(tmp_path / "bin", "gh")
    clone = team.clone("runner 1", idea)
    printed = run_steps(clone, github_steps(), tmp_path / "bin", PULL_REQUEST="7", BRANCH=idea)
    assert ran(printed) == ["judge"]
    assert called.read_text().split() == (
        ["pr", "comment", "7", "--edit-last", "--create-if-none", "--body-file", "comparison.md"]
    )
    assert re.search(r"confidence.*0\.95.*0\.8", (clone / "comparison.md").read_text())
    kept = git(team.hub, "log", "-1", "--format=%s", idea)
    assert kept == "Results"

    called = stand_in(tmp_path / "bin", "curl")
    variables = {
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": git(team.hub, "rev-parse", "main"),
        "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": idea,
        "CI_MERGE_REQUEST_IID": "7",
        "CI_PROJECT_ID": "3",
        "CI_API_V4_URL": "https://gitlab.example/api/v4",
        "ONSET_TOKEN": "secret",
    }
    before = git(team.hub, "rev-parse", idea)
    clone = team.clone("runner 2", idea)
    printed = run_steps(clone, gitlab_steps(), tmp_path / "bin", **variables)
    assert ran(printed) == [], "the other has kept what it computed"
    arguments = called.read_text().splitlines()
    assert arguments[-1] == "https://gitlab.example/api/v4/projects/3/merge_requests/7/notes"
    assert {"PRIVATE-TOKEN: secret", "body@comparison.md"} <= set(arguments)
    assert "confidence" in (clone / "comparison.md").read_text()
    assert git(team.hub, "rev-parse", idea) == before
