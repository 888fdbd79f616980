"""Which format an artefact is in: a folder by the files in it, a file by the end of its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from deploy.integer.runtime import FORMAT as INTEGER
from deploy.integer.runtime import NETWORK_NAME as INTEGER_NETWORK
from deploy.ncnn.runtime import FORMAT as NCNN
from deploy.ncnn.runtime import PARAM_NAME as NCNN_PARAM
from deploy.openvino import FORMAT as OPENVINO
from deploy.openvino import GRAPH_NAME as OPENVINO_GRAPH

# By the file that only folders of this format contain.
_FOLDERS: Mapping[str, str] = {NCNN_PARAM: NCNN, OPENVINO_GRAPH: OPENVINO, INTEGER_NETWORK: INTEGER}


def format_of(path: str | Path, known: Collection[str]) -> str | None:
    """Recognise the format of an artefact, whatever its folder is called.

    A folder without the files of any format, and a path that does not exist, are judged by their name alone, so that
    the loader can say what is missing.

    Args:
        path: The file or folder.
        known: Formats to choose from: the ends of names that exports have.

    Returns:
        The one of `known` that it is in, None if it is none of them.
    """
    path = Path(path)
    found = next((form for marker, form in _FOLDERS.items() if (path / marker).is_file()), None)
    if found is not None:
        return found if found in known else None
    return next((form for form in known if path.name.lower().endswith(form)), None)
