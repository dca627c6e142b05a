"""The project's files that a Python file imports, directly or through others."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"pipeline": ROOT / "pipeline", "mnist_mamba": ROOT / "src" / "mnist_mamba"}


def imported_files(start: Path) -> set[Path]:
    """Return all local files that run when `start` is imported and when its functions are called.

    Imports inside functions count; those under `if TYPE_CHECKING:` do not. Includes `start`.
    """
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _imported_modules(path):
            waiting += _files_of(module)
    return seen


def _imported_modules(path: Path) -> list[str]:
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative imports are not used here"
            # `from package import name`: the name may be a module of its own.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        waiting += ast.iter_child_nodes(node)
    return names


def _files_of(module: str) -> list[Path]:
    """Return the files that run when a dotted name is imported: the module and its packages."""
    top, *rest = module.split(".")
    folder = PACKAGES.get(top)
    if folder is None:
        return []
    files = [folder / "__init__.py"]
    for name in rest:
        folder = folder / name
        files += [folder / "__init__.py", folder.with_suffix(".py")]
    return [path for path in files if path.is_file()]
