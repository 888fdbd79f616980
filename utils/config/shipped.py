"""Look-up of files that come with the project, from any working folder."""

from __future__ import annotations

from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]


def find_shipped(path: str | Path, folder: str) -> Path:
    """Return a file as given if it exists, else the shipped one that the text names.

    `data/bccd.yaml`, `bccd.yaml` and `bccd` all name the file in the project's folder `data`.

    Args:
        path: Path or name that the user gave.
        folder: Folder of the project, such as "data" or "data/hyp", whose files may be given by name alone.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    if path.parts[:1] == ("data",):
        return _PROJECT / path if (_PROJECT / path).exists() else path
    names = (path.name, f"{path.name}.yaml") if path.name == str(path) else ()
    places = [_PROJECT / folder / name for name in names]
    return next((place for place in places if place.is_file()), path)


def shipped_names(folder: str) -> list[str]:
    """Return the names, without suffix, of the YAML files in a folder of the project."""
    return sorted(path.stem for path in (_PROJECT / folder).glob("*.yaml"))
