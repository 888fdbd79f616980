"""Counting rules that read code: lists of formats, doors to an evaluation, training loops, smells."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.house_source import House, Source, imported_module, inside

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Words of one format on a line: how users name it, and how its file or folder ends.
_FORMATS = (
    (".onnx", "onnx"),
    ("_ncnn_model", "ncnn"),
    ("_openvino_model", "openvino"),
    (".torchscript", "torchscript"),
    (".engine", "engine", "tensorrt"),
    ("_integer_model", "integer"),
)
_FORMAT_OF = {word: words[0] for words in _FORMATS for word in words}
# Fewer formats than this are a choice between some, no list.
_MIN_FORMATS = 3

_FILE_LINES = 400
_FUNCTION_LINES = 60
_BAD_START = re.compile(r"(Of|What)\b")
_BAD_ATTRIBUTE = re.compile(r"^\s+\*{0,2}\w+(?:, \*{0,2}\w+)*: (?:Of|What)\b.*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A function or method.

    Attributes:
        source: File that it is in.
        owner: Class that it is directly in, if any.
        node: Its syntax tree.
    """

    source: Source
    owner: ast.ClassDef | None
    node: Function

    def __str__(self) -> str:
        name = f"{self.owner.name}.{self.node.name}" if self.owner else self.node.name
        return f"{self.source.path}:{self.node.lineno} {name}"

    @property
    def code(self) -> list[ast.stmt]:
        """Body without the docstring."""
        has_docstring = ast.get_docstring(self.node, clean=False) is not None
        return self.node.body[1:] if has_docstring else self.node.body


def definitions(source: Source) -> list[Definition]:
    """List all functions and methods of a source, nested ones included."""
    return list(_definitions(source, source.tree, None))


def _definitions(source: Source, node: ast.AST, owner: ast.ClassDef | None) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield Definition(source=source, owner=owner, node=child)
            yield from _definitions(source, child, None)
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(source, child, child)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _definitions(source, child, owner)


def format_lists(house: House) -> list[str]:
    """Find the places that list three or more export formats, outside tests, benchmarks and examples.

    A place is one outermost dict, tuple, list, set or Literal, or the body of a class (such as an Enum). It names a
    format by its word, or by a constant of this or another module that is such a word or is made with one, as in
    `NCNN = Format(suffix="_ncnn_model")`. A chain of comparisons is no list.
    """
    rooms = inside(house)
    words = _format_words(rooms)
    return [
        f"{source.path}:{node.lineno}"
        for source in rooms.values()
        for node in _listing_nodes(source.tree, words[source.module])
    ]


def _format_words(house: House) -> dict[str, dict[str, str]]:
    """Map each module to its names of formats, as written there (`NCNN`, `runtime.FORMAT`), and what they name."""
    words = {name: _format_constants(source) for name, source in house.items()}
    # Twice, because a name may pass through the face of a package.
    for source in [*house.values()] * 2:
        known = words[source.module]
        for item in source.imports:
            offered = words.get(item.base, {})
            known |= {item.local: offered[item.name]} if item.name in offered else {}
            inner = words.get(imported_module(item, house), {}) if item.name not in offered else {}
            known |= {f"{item.local}.{name}": format_ for name, format_ in inner.items() if "." not in name}
    return words


def _format_constants(source: Source) -> dict[str, str]:
    """Map each constant of a module that names one format to that format."""
    constants: dict[str, str] = {}
    for node in source.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            formats = _formats_of(node.value, {})
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            constants |= dict.fromkeys(names, next(iter(formats))) if len(formats) == 1 else {}
    return constants


def _listing_nodes(node: ast.AST, known: Mapping[str, str]) -> Iterator[ast.expr | ast.ClassDef]:
    for child in ast.iter_child_nodes(node):
        named = {format_ for item in _elements(child) for format_ in _formats_of(item, known)}
        if isinstance(child, ast.expr | ast.ClassDef) and len(named) >= _MIN_FORMATS:
            yield child
        else:
            yield from _listing_nodes(child, known)


def _elements(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Dict):
        return [item for item in (*node.keys, *node.values) if item is not None]
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return node.elts
    if isinstance(node, ast.ClassDef):
        values = (item.value for item in node.body if isinstance(item, ast.Assign | ast.AnnAssign))
        return [value for value in values if value is not None]
    return []


def _formats_of(item: ast.expr, known: Mapping[str, str]) -> set[str]:
    if isinstance(item, ast.Constant):
        return {_FORMAT_OF[item.value]} if item.value in _FORMAT_OF else set()
    if isinstance(item, ast.Name | ast.Attribute):
        name = ast.unparse(item)
        return {known[name]} if name in known else set()
    if isinstance(item, ast.Call):
        arguments = [*item.args, *(keyword.value for keyword in item.keywords)]
        return {name for value in arguments if not isinstance(value, ast.Call) for name in _formats_of(value, known)}
    return set()


def evaluation_doors(house: House) -> list[str]:
    """Find the doors to an evaluation, outside tests, benchmarks and examples.

    A door is a public function, or a class with public methods or `__call__`, whose annotated result mentions a type
    that is called Evaluation or ends so. A class is one door however many of its methods answer. A Protocol only
    describes one. A verb's own run (a function called as its script or as its file in commands/) uses a door.
    """
    doors: dict[tuple[str, str], str] = {}
    for source in inside(house).values():
        for item in definitions(source):
            returned = ast.unparse(item.node.returns) if item.node.returns else ""
            if re.search(r"Evaluation\b", returned) and _is_public(item) and not _is_verb(item):
                doors.setdefault((str(source.path), item.owner.name if item.owner else item.node.name), str(item))
    return list(doors.values())


def _is_public(item: Definition) -> bool:
    names = [item.node.name, *([item.owner.name] if item.owner else [])]
    is_hidden = any(name.startswith("_") and name != "__call__" for name in names)
    is_protocol = item.owner is not None and any("Protocol" in ast.unparse(base) for base in item.owner.bases)
    return not is_hidden and not is_protocol


def _is_verb(item: Definition) -> bool:
    path = item.source.path
    return (item.source.is_script or path.parts[0] == "commands") and item.node.name == path.stem


def training_loops(house: House) -> list[str]:
    """Find what calls both `.backward()` and the `.step()` of something, outside tests, benchmarks and examples.

    A loop is a class, or all functions of a module that are in no class together.
    """
    found = []
    for source in inside(house).values():
        called: dict[str, set[str]] = defaultdict(set)
        for statement in source.tree.body:
            owner = f" {statement.name}" if isinstance(statement, ast.ClassDef) else ""
            called[owner] |= {
                node.func.attr
                for node in ast.walk(statement)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            }
        found += [f"{source.path}{owner}" for owner, names in called.items() if {"backward", "step"} <= names]
    return found


def long_files(house: House) -> list[str]:
    """Find files above 400 lines, outside tests, benchmarks and examples."""
    return [f"{item.path} ({item.num_lines})" for item in inside(house).values() if item.num_lines > _FILE_LINES]


def long_functions(house: House) -> list[str]:
    """Find functions above 60 lines, outside tests, benchmarks and examples; docstring and signature count."""
    items = (item for source in inside(house).values() for item in definitions(source))
    sizes = ((item, (item.node.end_lineno or 0) - item.node.lineno + 1) for item in items)
    return [f"{item} ({size})" for item, size in sizes if size > _FUNCTION_LINES]


def bad_starts(house: House) -> list[str]:
    """Find docstrings, and entries of their lists of attributes and arguments, that begin with "Of" or "What"."""
    found = []
    for source in inside(house).values():
        for node in ast.walk(source.tree):
            if not isinstance(node, Function | ast.ClassDef | ast.Module):
                continue
            text = ast.get_docstring(node) or ""
            place = f"{source.path}:{node.body[0].lineno if node.body else 1}"
            lines = [text.splitlines()[0]] if _BAD_START.match(text) else []
            found += [f"{place} {line.strip()}" for line in (*lines, *_BAD_ATTRIBUTE.findall(text))]
    return found
