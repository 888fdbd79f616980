"""Files that come with the project, found from any working folder."""

from __future__ import annotations

from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[1]


def find_shipped(path: str | Path, folder: str) -> Path:
    """Return a file as given where it exists, else the shipped one that the text names.

    `data/bccd.yaml`, `bccd.yaml` and `bccd` all name the file in the project's folder `data`.

    Args:
        path: What the user gave.
        folder: Folder of the project, such as "data" or "data/hyp", whose files may be named alone.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    if path.parts[:1] == ("data",):
        return _PROJECT / path if (_PROJECT / path).exists() else path
    names = (path.name, f"{path.name}.yaml") if path.name == str(path) else ()
    places = [_PROJECT / folder / name for name in names]
    return next((place for place in places if place.is_file()), path)
