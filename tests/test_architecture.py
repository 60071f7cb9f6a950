"""The house of DESIGN: what each stage depends on, and who may use whom."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.imports import ROOT, WRITE_ONLY, import_closure, imported_names, needed_files

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py"))
ROOMS = ("instructions", "tokens", "model", "judging", "benchmarks", "experiments", "pipeline")


def script_of(stage: str) -> str:
    return str(STAGES[stage]["cmd"]).split()[2].replace(".", "/") + ".py"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_import_closure(stage: str) -> None:
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    assert listed == needed_files(script_of(stage))


def test_every_file_beside_the_code_is_a_dependency() -> None:
    listed = {dep for stage in STAGES.values() for dep in stage["deps"]}
    tracked = subprocess.run(["git", "ls-files", "stages"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    beside = {path for path in tracked.split() if not path.endswith(".py")}
    no_stage = {path for path in beside if path.startswith("stages/experiments/")}  # that room is beside the flow
    assert beside - no_stage <= listed


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_described_and_take_one_section(stage: str) -> None:
    assert STAGES[stage]["desc"]
    assert len(STAGES[stage]["params"]) == 1


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_who_may_use_whom(module: Path) -> None:
    names = imported_names(ROOT / module)
    room = module.parts[1] if len(module.parts) == 3 else None
    tops = {name.split(".")[0] for name in names}
    ours = {name.split(".")[1] for name in names if name.startswith("stages.") and name.count(".") > 1}
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert not ours & scripts, "nobody imports a script"
    assert ours <= set(ROOMS)
    assert "dvc" not in tops
    if room:
        assert "typer" not in tops
    if room not in ("model", "judging"):
        assert "torch" not in tops
    if str(module) not in WRITE_ONLY:
        assert "mlflow" not in tops
    if room == "pipeline":
        assert ours <= {"pipeline"}
    if room == "instructions":
        assert ours <= {"instructions", "pipeline"}


@pytest.mark.parametrize("script", ["format", "split", "tokenize_and_collate"])
def test_tensor_free_stages_reach_no_torch(script: str) -> None:
    for module in import_closure(f"stages/{script}.py"):
        assert not {"torch", "transformers"} & {name.split(".")[0] for name in imported_names(ROOT / module)}


def test_init_files_are_empty() -> None:
    assert all(not path.read_text() for path in (ROOT / "stages").rglob("__init__.py"))
