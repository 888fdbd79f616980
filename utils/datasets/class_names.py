"""Classes of a network, of a YAML and of COCO JSON files, matched by their names."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from utils.errors import ConfigError

logger = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"(class|cls|item|object|label)?[ _-]?\d*", re.IGNORECASE)
# Names that a message lists.
_MOST_NAMED = 6


def class_name(value: object) -> str:
    """Return a class name without blanks around it, accents composed, so that equal looks are equal names."""
    return "" if value is None else unicodedata.normalize("NFC", " ".join(str(value).split()))


def class_order(wanted: Sequence[str], given: Sequence[str]) -> tuple[int, ...] | None:
    """Return for each given name its position among the wanted ones; None if the names are not the same.

    Where a name occurs several times, the first occurrences belong together, then the second ones.
    """
    place = {key: position for position, key in enumerate(_numbered(wanted))}
    order = [place.get(key) for key in _numbered(given)]
    known = tuple(position for position in order if position is not None)
    return known if len(known) == len(given) == len(wanted) else None


def different_names(first: Sequence[str], second: Sequence[str], *, what: tuple[str, str]) -> str:
    """Say which names only one of two lists has.

    Args:
        first, second: The names.
        what: What the user calls the two lists.
    """
    mine, yours = Counter(map(class_name, first)), Counter(map(class_name, second))
    only = [(what[0], mine - yours), (what[1], yours - mine)]
    return "; ".join(f"only {name} has {_listed(list(extra.elements()))}" for name, extra in only if extra)


def match_classes(own: Sequence[str], given: Sequence[str], *, weights: str, data: str) -> tuple[str, ...]:
    """Return the data's class names in the order in which a network knows them.

    Names that say nothing, such as `class0`, are paired by position, with a warning.

    Args:
        own: Names of the network's classes.
        given: Names of the data's classes.
        weights, data: What the user calls the two.

    Raises:
        ConfigError: The two have different classes.
    """
    if class_order(own, given) is not None:
        if tuple(own) != tuple(given):
            logger.info("%s and %s list their classes in different orders; they are matched by name", weights, data)
        return tuple(own)
    if len(own) == len(given) and (_says_nothing(own) or _says_nothing(given)):
        logger.warning("%s and %s call their classes differently; they are paired by position", weights, data)
        return tuple(given)
    counts = f"{weights} knows {len(own)} classes but {data} has {len(given)}"
    raise ConfigError(
        f"{counts}: {different_names(own, given, what=(weights, data))}; use the data the model was trained on, make "
        "the names agree, or measure with --single-cls of val.py"
    )


def compare_class_names(own: Sequence[str], given: Sequence[str], *, weights: str, data: str) -> None:
    """Warn of classes that are called differently and paired by position; a network without names is passed.

    Args:
        own: Names of the network's classes, or none.
        given: Names of the data's, as many.
        weights, data: What the user calls the two.
    """
    if own and tuple(own) != tuple(given):
        logger.warning("%s and %s call their classes differently; they are paired by position", weights, data)


def _numbered(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield each name with how often it came before."""
    seen: Counter[str] = Counter()
    for name in map(class_name, names):
        yield name, seen[name]
        seen[name] += 1


def _says_nothing(names: Sequence[str]) -> bool:
    return all(_PLACEHOLDER.fullmatch(name.strip()) for name in names)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(repr(name) for name in names[:_MOST_NAMED]) + more
