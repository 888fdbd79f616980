"""Headless Chromium: the page as a browser builds it, what it says on its console, and pictures of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed; make test-system installs it"
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One visit of a page.

    Attributes:
        dom: The page after its scripts ran, as HTML.
        console: Lines that the browser or a script wrote to the console.
        picture: Screenshot, if one was asked for.
    """

    dom: str
    console: list[str]
    picture: Path | None


def visit(page: Path, *, width: int, height: int, is_dark: bool = False, picture: Path | None = None) -> Seen:
    """Open a page in a profile of its own; the network is not reachable for it."""
    profile = page.parent / f"profile-{width}-{is_dark}-{picture is not None}"
    command = [str(shutil.which("chromium")), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--hide-scrollbars", "--no-first-run"]
    command += [f"--window-size={width},{height}", "--virtual-time-budget=4000", "--disable-component-update"]
    command += [f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", "--proxy-server=127.0.0.1:9"]
    command += ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return Seen(dom=done.stdout, console=re.findall(r"CONSOLE.*", done.stderr), picture=picture)


def framed(page: Path, folder: Path, *, width: int, height: int, script: str) -> Path:
    """Put a page into a frame of a width that a window cannot have, with a script that may look into it.

    The script finds the frame as `frame`, runs when the page is ready, and its result becomes the text of #result.
    """
    content = page.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    wrapper = folder / f"framed_{width}.html"
    style = f"width: {width}px; height: {height}px; border: 0"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin: 0"><iframe style="{style}" srcdoc="{content}">'
        f'</iframe><pre id="result" hidden></pre><script>const frame = document.querySelector("iframe");\n'
        "frame.addEventListener('load', () => {\n"
        f"document.getElementById('result').textContent = JSON.stringify((() => {{ {script} }})());}});\n"
        "</script></body>",
        encoding="utf-8",
    )
    return wrapper
