"""Self-contained pages without a script: made from templates that escape every text."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined


def fill_page(template: Path, **values: Any) -> str:
    """The page of a template, which has one `<style>` and gets `policy` besides the values.

    Texts among the values cannot become markup (`markupsafe.Markup` is markup already).
    """
    source = template.read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(source).render(values, policy=content_policy(source))


def content_policy(source: str) -> str:
    """The Content-Security-Policy (CSP level 3) under which the page's own style counts and nothing else does."""
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
