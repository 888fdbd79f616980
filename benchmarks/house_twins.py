"""Counting rules that compare functions of two files."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import combinations

from benchmarks.house_code import Definition, definitions
from benchmarks.house_source import House, Source, inside

_MIN_STATEMENTS = 4
_MIN_LINES = 6
_MIN_RATIO = 0.9


def twins(house: House) -> list[str]:
    """Find pairs of functions of the same name and shape in two files, outside tests, benchmarks and examples.

    The shape is the sequence of kinds of syntax nodes of the body, docstring left out, so that names, attributes and
    constants do not matter. Shapes are the same if difflib calls them 90 % alike. Functions count from four
    statements (nested ones included) or six lines.
    """
    by_name: dict[str, list[tuple[Definition, list[str]]]] = defaultdict(list)
    for source in inside(house).values():
        for item in definitions(source):
            if _is_long_enough(item):
                by_name[item.node.name].append((item, _shape(item)))
    return [
        f"{one} = {other}"
        for group in by_name.values()
        for (one, left), (other, right) in combinations(group, 2)
        if one.source is not other.source and _are_alike(left, right)
    ]


def _is_long_enough(item: Definition) -> bool:
    if not item.code:
        return False
    statements = sum(isinstance(node, ast.stmt) for statement in item.code for node in ast.walk(statement))
    lines = (item.code[-1].end_lineno or 0) - item.code[0].lineno + 1
    return statements >= _MIN_STATEMENTS or lines >= _MIN_LINES


def _shape(item: Definition) -> list[str]:
    return [type(node).__name__ for statement in item.code for node in _in_order(statement)]


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.expr_context):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _are_alike(left: list[str], right: list[str]) -> bool:
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    is_possible = matcher.real_quick_ratio() >= _MIN_RATIO and matcher.quick_ratio() >= _MIN_RATIO
    return is_possible and matcher.ratio() >= _MIN_RATIO


def classifier_doubles(house: House) -> list[str]:
    """Find functions, whatever their shape, that a file for classifiers and another file both define under one name.

    Methods and models/ are left out: values of one protocol share names, and a network is no flow. A file is for
    classifiers if its path contains "classif".
    """
    by_name: dict[str, list[Definition]] = defaultdict(list)
    for source in inside(house).values():
        if source.path.parts[0] != "models":
            for item in definitions(source):
                if item.node in source.tree.body:
                    by_name[item.node.name].append(item)
    return [
        f"{one} = {other}"
        for group in by_name.values()
        for one, other in combinations(group, 2)
        if _is_for_classifiers(one.source) != _is_for_classifiers(other.source)
    ]


def _is_for_classifiers(source: Source) -> bool:
    return "classif" in str(source.path)
