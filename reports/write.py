"""Writing of report.json and report.html: one file each, complete or not at all."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from reports import text
from reports.charts import candidates_charts, ridge_charts, scan_charts
from reports.content import SECTIONS, report_content
from reports.reading import SlimRun
from utils.datasets.reading.images import read_image
from utils.storage.files import write_json, write_text

LOGGER = logging.getLogger(__name__)

JSON_NAME, PAGE_NAME = "report.json", "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
# Longest side of an example image, in pixels, and its quality as JPEG.
_LONGEST_SIDE, _QUALITY = 640, 82


def write_report(folder: str | Path) -> Path:
    """Write report.html and report.json into the folder of a run of slim.py, from what its stages left there.

    Returns:
        The page.

    Raises:
        ConfigError: It is no folder of such a run, no stage is finished, or a file of it is damaged.
        DataError: An image to show became unreadable since its data set was indexed.
    """
    run = SlimRun.read(Path(folder))
    content = report_content(run)
    write_json(run.path / JSON_NAME, content)
    page = run.path / PAGE_NAME
    write_text(page, page_of(content, folder=run.path))
    LOGGER.info("report: %s", page)
    return page


def page_of(content: Mapping[str, Any], *, folder: Path) -> str:
    """Fill the page.

    Args:
        content: Content of report.json.
        folder: Run folder, for plots and example images.
    """
    charts = {
        "candidates": candidates_charts(content.get("candidates", []), y_label=text.label(content["scores"][-1])),
        "scales": [ridge_charts(scale) for scale in content.get("scales", [])],
        "scans": [
            scan_charts(scan, content["scores"], labels=[text.label(name) for name in content["scores"]])
            for scan in content.get("scans", [])
        ],
    }
    plotted = [*content.get("scales", []), *content.get("rounding", [])]
    files = [part["plot"] for part in plotted if "plot" in part]
    examples = (content.get("examples") or {}).get("shown", [])
    environment = _environment()
    page: str = environment.get_template("report.html").render(
        report=dict.fromkeys(SECTIONS) | dict(content),
        names=text.titles(content),
        headline=text.headline(content),
        remarks=text.remarks(content),
        charts=charts,
        plots={file: _data_uri(folder / file) for file in files},
        images={example["path"]: _example_uri(example["path"]) for example in examples},
    )
    return page


@cache
def _environment() -> Environment:
    """Return the templates, which escape every value and refuse names that do not exist."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "label",
        "score",
        "signed",
        "direction",
        "count",
        "macs",
        "size",
        "ms",
        "factor",
        "percent",
        "tick",
        "tiny",
    ):
        environment.filters[name] = getattr(text, name)
    environment.filters["bounds"] = text.bounds
    # Style and script are our own files, so they are put in as they are; no other script runs in the page.
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"style": Markup(style), "script": Markup(script), "script_digest": f"sha256-{digest}"}
    return environment


def _data_uri(path: Path) -> str:
    """Return a PNG as text that a page can contain."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _example_uri(path: str) -> str:
    """Return an image as a JPEG that a page can contain, at most 640 pixels long."""
    picture = Image.fromarray(read_image(path))
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
