"""Which of our modules a script imports, at whatever depth, read off the syntax trees."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

WRITE_ONLY = {
    f"stages/pipeline/tracking{what}.py"
    for what in ("", "_description", "_files", "_model", "_runs", "_store", "_tags", "_views")
}
"""Left out of dvc.yaml on purpose, with what they alone need: all that they do is to write to MLflow."""


def imported_names(path: Path) -> set[str]:
    """Dotted names of all modules, or names in modules, that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def our_imports(path: Path) -> set[str]:
    """Files of ours that a file imports, as paths from the root; empty `__init__.py` files do not count."""
    candidates = (name.replace(".", "/") + ".py" for name in imported_names(path) if name.startswith("stages."))
    return {candidate for candidate in candidates if (ROOT / candidate).is_file()}


def import_closure(script: str) -> set[str]:
    """The script and every file of ours that it needs."""
    found, waiting = set(), {script}
    while waiting:
        path = waiting.pop()
        found.add(path)
        if path not in WRITE_ONLY:
            waiting |= our_imports(ROOT / path) - found
    return found


def needed_files(script: str) -> set[str]:
    """What dvc.yaml must list of our code for a stage: the import closure, and the files beside modules they name."""
    modules = import_closure(script) - WRITE_ONLY
    beside = {
        other.relative_to(ROOT).as_posix()
        for module in modules
        for other in (ROOT / module).parent.iterdir()
        if other.suffix in (".json", ".html", ".jinja", ".txt") and f'"{other.name}"' in (ROOT / module).read_text()
    }
    return modules | beside
