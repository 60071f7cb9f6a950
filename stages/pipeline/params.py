"""Strict parameters: `params.yaml` is the record, one section for each stage."""

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.pipeline.errors import UserError


def _not_bool(value: object) -> object:
    """pydantic would take `true` for the number 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
"""A float; text such as `1e-5`, which YAML 1.1 does not take for a number, is read as one."""

Whole = Annotated[int, BeforeValidator(_not_bool)]
"""An int; text that spells one is read as one."""


class Params(BaseModel):
    """One section of `params.yaml`. Subclasses name it in `section` and give no defaults: the file is the record."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    section: ClassVar[str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check this section of the file at `path`.

        Raises:
            UserError: the file or section is missing, or a parameter is unknown, missing, mistyped or impossible.
        """
        try:
            sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; run from the folder that holds params.yaml") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(sections, dict) or not isinstance(sections.get(cls.section), dict):
            raise UserError(f"{path}: section '{cls.section}' is missing; see the shipped params.yaml")
        try:
            return cls.model_validate(sections[cls.section])
        except ValidationError as error:
            raise UserError("; ".join(cls._explain(path, problem) for problem in error.errors())) from None

    @classmethod
    def _explain(cls, path: Path, problem: Any) -> str:
        where = ".".join([cls.section, *map(str, problem["loc"])])
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) > 1:
            return f"{path}: {where}: unknown parameter; see the shipped params.yaml"
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(problem["loc"][-1]), cls.model_fields, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(cls.model_fields)}"
            return f"{path}: {where}: unknown parameter; {hint}"
        if problem["type"] == "missing":
            return f"{path}: {where}: missing; see the shipped params.yaml"
        message = problem["msg"].removeprefix("Value error, ")
        got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
        return f"{path}: {where}: {message[0].lower()}{message[1:]}{got}"
