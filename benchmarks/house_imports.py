"""Counting rules that follow imports: floors, circles, upward imports, readers of a file, alike files.

Importing a package's face (`__init__.py`) is an arrow to the face, not to what the face imports. Floors and circles
follow imports at the top of a module; those inside functions and under TYPE_CHECKING count for the other rules only.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache

from benchmarks.house_source import OUTSIDE, House, Source, imported_module, inside

# A package imports only from lower levels or from itself; packages of one level do not know each other.
LEVELS = {
    "utils": 0,
    "models": 1,
    "engine": 2,
    "pruning": 3,
    "quantization": 3,
    "deploy": 4,
    "tasks": 5,
    "reports": 5,
    "commands": 6,
}
SCRIPT_LEVEL = 7

# Fewer files of one folder than this in one table do not make the folder a list of alike things.
_MIN_ALIKE = 3
_SMALL_LINES = 80

Graph = Mapping[str, Set[str]]


def _targets(source: Source, house: House, *, only_early: bool = False) -> set[str]:
    imports = (item for item in source.imports if item.is_early or not only_early)
    return {imported_module(item, house) for item in imports} - {"", source.module}


def import_graph(house: House) -> Graph:
    """Map each module to those that it imports while it is imported itself."""
    return {name: _targets(source, house, only_early=True) for name, source in house.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Find the largest groups of nodes that all reach each other."""
    groups = {group for group in _groups(graph).values() if len(group) > 1}
    return sorted(sorted(group) for group in groups)


def longest_chain(graph: Graph) -> list[str]:
    """Find a longest path, from the importer down; a circle of n nodes counts as n floors."""
    groups = _groups(graph)

    @cache
    def below(group: frozenset[str]) -> list[str]:
        lower = {groups[target] for node in group for target in graph[node]} - {group}
        return sorted(group) + max((below(other) for other in sorted(lower, key=sorted)), key=len, default=[])

    return max((below(group) for group in sorted(set(groups.values()), key=sorted)), key=len, default=[])


def _groups(graph: Graph) -> dict[str, frozenset[str]]:
    """Map each node to itself and those it reaches and is reached by."""
    reached = {node: _reached(graph, node) for node in graph}
    return {node: frozenset({node} | {other for other in reached[node] if node in reached[other]}) for node in graph}


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def package_graph(house: House, package: str) -> Graph:
    """Restrict the import graph to the modules of one package."""
    modules = {name for name in house if name.split(".")[0] == package}
    return {name: targets & modules for name, targets in import_graph(house).items() if name in modules}


def folder_graph(house: House, package: str) -> Graph:
    """Merge the modules of a package by the folder directly below it; a module outside such a folder is one itself.

    The package's own face is left out: it only names what the folders offer.
    """
    graph = {name: targets - {package} for name, targets in package_graph(house, package).items() if name != package}

    def folder(module: str) -> str:
        return "/".join(house[module].path.parts[:2])

    merged: dict[str, set[str]] = {folder(name): set() for name in graph}
    for name, targets in graph.items():
        merged[folder(name)] |= {folder(target) for target in targets} - {folder(name)}
    return merged


def upward_imports(house: House) -> list[str]:
    """Find imports, wherever they stand, of a package on the same or a higher level, of a script, or of OUTSIDE."""
    scripts = {name for name, source in house.items() if source.is_script}
    found = []
    for source in inside(house).values():
        package = source.path.parts[0]
        level = LEVELS.get(package, SCRIPT_LEVEL)
        for module in sorted(_targets(source, house)):
            name = module.split(".")[0]
            is_above = LEVELS.get(name, -1) >= level and name != package
            if is_above or name in scripts or name in OUTSIDE:
                found.append(f"{source.path} imports {module}")
    return found


def lone_small_files(house: House) -> list[str]:
    """Find files under 80 lines that exactly one module imports, wherever in that module.

    Faces and scripts are no such files, nor is a verb's run in commands/, which its script reads. Tests, benchmarks
    and examples are no readers. A file that only the face of its package imports is read by those who take its names
    from the face.
    """
    rooms = inside(house)
    scripts = {source.path.name for source in rooms.values() if source.is_script}
    readers: dict[str, set[str]] = defaultdict(set)
    for name, source in rooms.items():
        for target in _targets(source, rooms):
            readers[target].add(name)
    found = []
    for name, source in rooms.items():
        is_verb = source.path.parts[0] == "commands" and source.path.name in scripts
        if source.is_face or source.is_script or is_verb or source.num_lines >= _SMALL_LINES:
            continue
        real = readers[name]
        if len(real) == 1 and rooms[next(iter(real))].is_face:
            real = _readers_through(next(iter(real)), name, rooms) or real
        if len(real) == 1:
            found.append(f"{source.path} ({source.num_lines} lines) is read by {rooms[next(iter(real))].path}")
    return found


def _readers_through(face: str, module: str, house: House) -> set[str]:
    """Find the modules that take from a face what the face takes from a module."""
    offered = {item.local for item in house[face].imports if imported_module(item, house) == module}
    return {
        name
        for name, source in house.items()
        if any(item.base == face and item.name in offered for item in source.imports)
    }


def unlike_files(house: House) -> dict[str, int]:
    """Count the unlike Python files directly in each folder, faces left out.

    Files are alike, and count as one, where one table (a dict display at the top of any module) refers in its values
    to names imported from three or more files of the folder; so are the files that scripts at the root name, two for
    each verb. Tests, benchmarks and examples are not counted.
    """
    rooms = inside(house)
    folders: dict[str, set[str]] = defaultdict(set)
    for name, source in rooms.items():
        if not source.is_face:
            folders[str(source.path.parent)].add(name)
    tables = [modules for source in rooms.values() for modules in _tables(source, rooms)]
    tables.append(
        {imported_module(item, rooms) for source in rooms.values() if source.is_script for item in source.imports}
    )
    return {folder: len(_merged(modules, tables)) for folder, modules in folders.items()}


def _merged(modules: Set[str], tables: Iterable[Set[str]]) -> Set[frozenset[str]]:
    groups = {frozenset({module}) for module in modules}
    for table in tables:
        if len(table & modules) >= _MIN_ALIKE:
            alike = {group for group in groups if group & table}
            groups = (groups - alike) | {frozenset[str]().union(*alike)}
    return groups


def _tables(source: Source, house: House) -> Iterator[set[str]]:
    """Yield the modules that each table of a source refers to in its values."""
    origins = {item.local: imported_module(item, house) for item in source.imports}
    for statement in source.tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict):
            names = {node.id for item in value.values for node in ast.walk(item) if isinstance(node, ast.Name)}
            yield {origins[name] for name in names if origins.get(name)}
