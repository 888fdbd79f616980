"""Matching of the classes of a network, a YAML and COCO JSON files by name."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from utils.errors import ConfigError

logger = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"(class|cls|item|object|label)?[ _-]?\d*", re.IGNORECASE)
# Most names that a message lists.
_MOST_NAMED = 6


def class_name(value: object) -> str:
    """Return a class name without surplus blanks and with composed accents, so that names that look equal are."""
    return "" if value is None else unicodedata.normalize("NFC", " ".join(str(value).split()))


def class_order(wanted: Sequence[str], given: Sequence[str]) -> tuple[int, ...] | None:
    """Return the position of each given name among the wanted ones; None if the names are not the same.

    If a name occurs several times, first occurrences are matched with each other, then second ones, and so on.
    """
    place = {key: position for position, key in enumerate(_numbered(wanted))}
    order = [place.get(key) for key in _numbered(given)]
    known = tuple(position for position in order if position is not None)
    return known if len(known) == len(given) == len(wanted) else None


def different_names(first: Sequence[str], second: Sequence[str], *, what: tuple[str, str]) -> str:
    """Return a text that says which names only one of two lists has.

    Args:
        first, second: Lists of names.
        what: Names of the two lists in the text.
    """
    mine, yours = Counter(map(class_name, first)), Counter(map(class_name, second))
    only = [(what[0], mine - yours), (what[1], yours - mine)]
    return "; ".join(f"only {name} has {_listed(list(extra.elements()))}" for name, extra in only if extra)


def match_classes(own: Sequence[str], given: Sequence[str], *, weights: str, data: str) -> tuple[str, ...]:
    """Return the class names of a data set in the order of a network's class ids.

    Placeholder names, such as `class0`, are paired by position, with a warning.

    Args:
        own: Class names of the network.
        given: Class names of the data set.
        weights, data: Names of the network and the data set in messages.

    Raises:
        ConfigError: Network and data set have different classes.
    """
    if class_order(own, given) is not None:
        if tuple(own) != tuple(given):
            logger.info("%s and %s order their classes differently; classes are matched by name", weights, data)
        return tuple(own)
    if len(own) == len(given) and (_says_nothing(own) or _says_nothing(given)):
        logger.warning("%s and %s have different class names; classes are paired by position", weights, data)
        return tuple(given)
    counts = f"{weights} has {len(own)} classes but {data} has {len(given)}"
    raise ConfigError(
        f"{counts}: {different_names(own, given, what=(weights, data))}; use the data the model was trained on, make "
        "the names agree, or measure with --single-cls of val.py"
    )


def compare_class_names(own: Sequence[str], given: Sequence[str], *, weights: str, data: str) -> None:
    """Warn if classes paired by position have different names; accept a network without names.

    Args:
        own: Class names of the network, or none.
        given: Class names of the data set, as many.
        weights, data: Names of the network and the data set in messages.
    """
    if own and tuple(own) != tuple(given):
        logger.warning("%s and %s have different class names; classes are paired by position", weights, data)


def _numbered(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield each name with the number of its earlier occurrences."""
    seen: Counter[str] = Counter()
    for name in map(class_name, names):
        yield name, seen[name]
        seen[name] += 1


def _says_nothing(names: Sequence[str]) -> bool:
    return all(_PLACEHOLDER.fullmatch(name.strip()) for name in names)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(repr(name) for name in names[:_MOST_NAMED]) + more
