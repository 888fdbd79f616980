"""The Python files of a checkout, parsed, with what they import."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from utils.errors import DataError

# A function that is imported only when it is called.
_REFERENCE = re.compile(r"[a-z_]+(\.\w+)+:\w+")
# Folders that nothing in the packages imports, and that rules on the packages leave out.
OUTSIDE = ("tests", "benchmarks", "docs", "examples", "tools")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name.

    Attributes:
        base: Dotted module after `from` or `import`.
        name: Name taken from it; empty for a plain `import`.
        local: Name that it has from then on.
        is_early: Whether it is imported while the file itself is: neither in a function nor under TYPE_CHECKING.
    """

    base: str
    name: str
    local: str
    is_early: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """One Python file.

    Attributes:
        path: Path relative to the checkout.
        text: Content of the file.
        tree: Syntax tree of the content.
    """

    path: PurePosixPath
    text: str
    tree: ast.Module

    @property
    def is_face(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def is_script(self) -> bool:
        return len(self.path.parts) == 1

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def module(self) -> str:
        """Dotted name under which others import the file."""
        parts = self.path.parent.parts if self.is_face else self.path.with_suffix("").parts
        return ".".join(parts)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Everything that the file imports anywhere, or names as `module:function` to be imported later."""
        package = self.path.parent.parts
        return (*_imports(self.tree, package=package, is_early=True), *_named(self.tree))


# Every file by the dotted name of its module.
House = Mapping[str, Source]


def tracked_files(root: Path) -> list[str]:
    """List the Python files of a checkout that git tracks and that exist.

    Raises:
        DataError: The folder is no git checkout.
    """
    command = ["git", "ls-files", "--cached", "*.py"]
    if not root.is_dir():
        raise DataError(f"--root {root}: no such folder; give a checkout of the project")
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise DataError(f"--root {root}: no git checkout; give one, for only files that git tracks are counted")
    return [line for line in listed.stdout.splitlines() if (root / line).exists()]


def read_house(root: Path, files: Iterable[str]) -> House:
    """Parse the files of a checkout."""
    sources = []
    for file in files:
        text = (root / file).read_text(encoding="utf-8")
        sources.append(Source(path=PurePosixPath(file), text=text, tree=ast.parse(text)))
    return {source.module: source for source in sources}


def inside(house: House) -> House:
    """Leave out tests, benchmarks and examples."""
    return {name: source for name, source in house.items() if source.path.parts[0] not in OUTSIDE}


def imported_module(item: Import, house: House) -> str:
    """Find the module of the project that an import leads to; empty if it leads outside."""
    name = f"{item.base}.{item.name}" if item.name else item.base
    while name and name not in house:
        name = name.rpartition(".")[0]
    return name


def _imports(node: ast.AST, *, package: tuple[str, ...], is_early: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                local = alias.asname or alias.name.split(".")[0]
                yield Import(base=alias.name, name="", local=local, is_early=is_early)
        elif isinstance(child, ast.ImportFrom):
            base = _full_base(child, package)
            for alias in child.names:
                yield Import(base=base, name=alias.name, local=alias.asname or alias.name, is_early=is_early)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _imports(child, package=package, is_early=is_early and not _is_late(child))


def _named(tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _REFERENCE.fullmatch(node.value):
            module, _, function = node.value.partition(":")
            yield Import(base=module, name=function, local="", is_early=False)


def _full_base(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    """Name the module after `from`, a relative one in full."""
    if not node.level:
        return node.module or ""
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
