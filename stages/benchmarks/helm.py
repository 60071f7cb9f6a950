"""HELM: its own prompts and metrics (Liang et al. 2022, arXiv 2211.09110), run by crfm-helm.

crfm-helm wants older pandas and datasets than we do, so they stand first in .venv-helm, before what is in ours.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.benchmarks.benchmark import Benchmark, Figure, Found, Measurement, Need, Row, Settings, Source, Subject
from stages.benchmarks.helm_results import read_run
from stages.instructions.raw_files import read_text
from stages.pipeline.errors import UserError
from stages.pipeline.files import dvc_root, read_json, write_json
from stages.pipeline.progress import Bar, bar, say

NAME = "helm"
ENVIRONMENT = ".venv-helm"
INSTALL = "python -m stages.benchmark install helm"
REQUIREMENTS = Path(__file__).with_name("helm-requirements.txt")
ALL_ROWS = 10**9
"""helm-run wants a limit."""
_ENTRY_FILES = ("run_entries.txt", "run_entries.conf")
_DESCRIPTION = re.compile(r'^\s*\{?\s*"?description"?\s*[:=]\s*"([^"]+)"', re.MULTILINE)
_RUNS_CODE = ("code", "bigcodebench", "image2")


class Helm(Benchmark):
    """Run entries, and what helm-run makes of them."""

    name = NAME
    title = "HELM"
    about = "scenarios of Stanford's HELM with its own prompts and metrics, by crfm-helm"
    layout = "run_entries.txt (mmlu:subject=anatomy, one a line) or .conf, and the scenarios' files in scenarios/"
    source = Source(
        licence="that of each scenario; crfm-helm is Apache-2.0",
        where="https://crfm-helm.readthedocs.io",
        note=f"wants an environment of its own: `{INSTALL}`; scenarios/<scenario>/ holds what HELM would keep in "
        "benchmark_output/scenarios, as in scenarios/mmlu/data/{dev,val,test}/",
    )
    needs: frozenset[Need] = frozenset({"environment"})
    together = False

    def find(self, folder: Path) -> Found:
        """Its entries, each counted once: how many rows one has, HELM alone knows."""
        entries = read_entries(folder)
        return Found(dict.fromkeys(entries, 1), dict.fromkeys(entries, 0))

    def check(self, folder: Path, wanted: Sequence[str], settings: Settings) -> None:
        """It also needs its environment."""
        super().check(folder, wanted, settings)
        require()

    def measure(
        self, subjects: Sequence[Subject], folder: Path, wanted: Sequence[str], settings: Settings, into: Path
    ) -> Measurement:
        """All metrics of every entry.

        Raises:
            UserError: there is no environment for it, an entry would run code, or helm-run fails.
        """
        program = require()
        entries = list(wanted) or read_entries(folder)
        if not entries:
            raise UserError(f"{folder}: holds no run entry; it wants {self.layout}")
        measured_figures: list[Figure] = []
        rows: list[Row] = []
        for subject in subjects:
            with tempfile.TemporaryDirectory() as place:
                run(program, subject, entries, folder, Path(place), settings.limit)
                for results in sorted((Path(place) / "output/runs/onset").glob("*/stats.json")):
                    found = read_run(results.parent, subject.name, settings)
                    measured_figures += found.figures
                    rows += found.rows
        return Measurement(measured_figures, rows)


BENCHMARKS = (Helm(),)


def require() -> Path:
    """The program helm-run.

    Raises:
        UserError: it is not installed; the command that does so.
    """
    environment = dvc_root() / ENVIRONMENT
    program = environment / "bin/helm-run"
    if not (environment / "installed").exists() or not program.exists():
        raise UserError(f"{environment}: HELM is not installed; run `{INSTALL}` (some minutes, 0.4 GB)")
    return program


def install(root: Path) -> None:
    """Make .venv-helm below `root`: crfm-helm and what must differ from our environment, which stands behind it.

    Raises:
        UserError: a step fails.
    """
    environment = root / ENVIRONMENT
    python = str(environment / "bin/python")
    say(f"installing crfm-helm into {environment} (some minutes) ...")
    _step([sys.executable, "-m", "venv", "--clear", str(environment)])
    places = _step([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    (Path(places.strip()) / "onset.pth").write_text(sysconfig.get_path("purelib") + "\n")
    quiet = ["-qq", "--disable-pip-version-check", "--no-deps"]
    _step([python, "-m", "pip", "install", *quiet, "-r", str(REQUIREMENTS)])
    _step([str(environment / "bin/helm-run"), "--help"])
    (environment / "installed").touch()
    say(f"{environment} is ready")


def _step(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_surroundings())
    if done.returncode:
        words = " ".join(command)
        raise UserError(f"{ENVIRONMENT}: `{words}` failed; run it by hand to see why, then `{INSTALL}` again")
    return done.stdout


def _surroundings() -> dict[str, str]:
    """Of a program in the other environment: without ours, and without a hub."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    return kept | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def read_entries(folder: Path) -> list[str]:
    """The run entries in its file, each without its model.

    Raises:
        UserError: an entry has no name, stands there twice, or would run code of the model's outside our sandbox.
    """
    paths = [folder / name for name in _ENTRY_FILES if (folder / name).exists()]
    if not paths:
        return []
    text = read_text(paths[0])
    written = _DESCRIPTION.findall(text) if paths[0].suffix == ".conf" else text.splitlines()
    entries = [_without_model(line.strip()) for line in written if line.strip() and not line.lstrip().startswith("#")]
    repeated = [entry for entry, times in Counter(entries).items() if times > 1]
    if repeated or "" in entries:
        raise UserError(f"{paths[0]}: {repeated[0] if repeated else 'a scenario without a name'}: mend this entry")
    for entry in entries:
        if entry.startswith(_RUNS_CODE):
            raise UserError(f"{paths[0]}: {entry}: HELM would run code of the model's without a sandbox; take it out")
    if not entries:
        raise UserError(f"{paths[0]}: holds no run entry; write one a line, as in mmlu:subject=anatomy")
    return entries


def _without_model(entry: str) -> str:
    name, _, rest = entry.partition(":")
    arguments = [argument for argument in rest.split(",") if argument and not argument.strip().startswith("model=")]
    return name + (":" + ",".join(arguments) if arguments else "")


def run(program: Path, subject: Subject, entries: Sequence[str], folder: Path, place: Path, limit: int | None) -> None:
    """Run the entries on one subject; HELM's files come to output/runs/onset in `place`.

    Raises:
        UserError: helm-run fails; its last words.
    """
    model = f"onset/{subject.name}"
    _configure(place / "config", model, subject)
    if (folder / "scenarios").is_dir():  # HELM unpacks and writes there
        shutil.copytree(folder / "scenarios", place / "output/scenarios")
    named = [f"{entry}{',' if ':' in entry else ':'}model={model}" for entry in entries]
    command = [
        str(program), "--run-entries", *named, "--local-path", str(place / "config"),
        "--output-path", str(place / "output"), "--suite", "onset", "--max-eval-instances", str(limit or ALL_ROWS),
        "--num-threads", "1", "--disable-cache", "--exit-on-error",
    ]  # fmt: skip
    with bar(f"{NAME}, {subject.name}", len(entries)) as progress, _started(command, place) as helm:
        last = _follow(helm, progress)
    if helm.returncode:
        raise UserError(f"{NAME}: helm-run failed: {last}; take the entry out of {folder}, or bring its files")


@contextmanager
def _started(command: Sequence[str], place: Path) -> Iterator[subprocess.Popen[str]]:
    helm = subprocess.Popen(
        command,
        cwd=place,
        env=_surroundings(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        yield helm
        helm.wait()
    finally:
        helm.kill()
        helm.wait()


def _follow(helm: subprocess.Popen[str], progress: Bar) -> str:
    """Show how far it is; the last line it said."""
    last = "it said nothing"
    assert helm.stdout is not None
    for line in helm.stdout:
        last = line.strip() or last
        if line.rstrip().endswith("/stats.json"):
            progress.advance()
    return last[-300:]


def _configure(folder: Path, model: str, subject: Subject) -> None:
    """Tell HELM of the checkpoint: it infers the context window of few (HELM's docs, adding new models)."""
    checkpoint: Path | None = getattr(subject, "folder", None)
    if checkpoint is None:
        raise UserError(f"{NAME}: the {subject.name} model is no checkpoint folder, which helm-run wants")
    config = read_json(checkpoint / "config.json")
    lengths = [config[name] for name in ("max_position_embeddings", "n_positions") if name in config]
    if not lengths:
        raise UserError(f"{checkpoint / 'config.json'}: has no max_position_embeddings, which HELM needs")
    tokens = read_json(checkpoint / "tokenizer_config.json")
    given = {"pretrained_model_name_or_path": str(checkpoint.resolve())}
    deployment = {
        "name": model,
        "model_name": model,
        "tokenizer_name": model,
        "max_sequence_length": lengths[0],
        "client_spec": {"class_name": "helm.clients.huggingface_client.HuggingFaceClient", "args": given},
    }
    tokenizer = {
        "name": model,
        "tokenizer_spec": {"class_name": "helm.tokenizers.huggingface_tokenizer.HuggingFaceTokenizer", "args": given},
        "end_of_text_token": _token(tokens.get("eos_token")),
        "prefix_token": _token(tokens.get("bos_token")),
    }
    # JSON is YAML too.
    write_json(folder / "model_deployments.yaml", {"model_deployments": [deployment]})
    write_json(folder / "tokenizer_configs.yaml", {"tokenizer_configs": [tokenizer]})


def _token(value: Any) -> str:
    """A special token, which older files wrap in an object."""
    return str(value["content"] if isinstance(value, dict) else value or "")
