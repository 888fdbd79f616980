"""report.html in a browser: its parts, no error on the console, nothing too wide for a phone, tips for marks."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import framed, needs_chromium, visit
from PIL import Image
from test_page import SECTIONS, full_run, hostile_run

from reports import write_report

pytestmark = [pytest.mark.system, needs_chromium]

# The elements that stick out of the page and do not scroll in a frame of their own.
WIDER_THAN_THE_PAGE = """
const page = frame.contentDocument, wide = page.documentElement.clientWidth;
const scrolled = (element) => element.closest(".scroll, nav ul, pre");
const out = [...page.body.querySelectorAll("*")].filter((element) =>
  element.getBoundingClientRect().right > wide + 0.5 && !scrolled(element) && !element.closest("svg"));
const scroll = page.documentElement.scrollWidth;
return {client: wide, scroll, out: out.map((element) => element.outerHTML.slice(0, 120))};
"""
POINT_AT_A_MARK = """
const page = frame.contentDocument, tip = page.getElementById("tip"), seen = [tip.hidden];
for (const place of ["circle.mark", ".box-object", ".layers li"]) {
  const target = [...page.querySelectorAll(place)].find((mark) => mark.getBoundingClientRect().width > 0);
  target.scrollIntoView({block: "center"});
  target.dispatchEvent(new frame.contentWindow.PointerEvent("pointerover", {bubbles: true}));
  const box = tip.getBoundingClientRect();
  seen.push({text: tip.textContent, hidden: tip.hidden, left: box.left, right: box.right});
}
page.body.dispatchEvent(new frame.contentWindow.PointerEvent("pointerover", {bubbles: true}));
return [...seen, tip.hidden];
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(full_run(tmp_path_factory.mktemp("browser")).path)


def result_of(page: Path, script: str, *, width: int) -> Any:
    wrapper = framed(page, page.parent, width=width, height=800, script=script)
    seen = visit(wrapper, width=max(width, 600), height=900)
    assert seen.console == []
    found = re.search(r'<pre id="result" hidden="">(.*?)</pre>', seen.dom, flags=re.DOTALL)
    assert found, seen.dom[-500:]
    return json.loads(html.unescape(found[1]))


def test_browser_finds_every_part_and_no_error(page: Path) -> None:
    seen = visit(page, width=1100, height=900)
    assert seen.console == []
    assert re.findall(r'<section id="(\w+)"', seen.dom) == list(SECTIONS)
    assert seen.dom.count("<svg") > 8
    assert "Ship best_ncnn_model" in seen.dom


def test_error_on_the_console_would_be_seen(page: Path) -> None:
    broken = page.with_name("broken.html")
    broken.write_text("<script>missing();</script>" + page.read_text(encoding="utf-8"), encoding="utf-8")
    assert any("missing is not defined" in line for line in visit(broken, width=1100, height=900).console)
    loading = page.with_name("loading.html")
    loading.write_text(
        '<meta charset="utf-8"><img src="http://127.0.0.1:9/a.png">' + page.read_text(encoding="utf-8")
    )
    assert visit(loading, width=1100, height=900).console != []


def test_names_of_others_run_no_script(tmp_path: Path) -> None:
    page = hostile_run(tmp_path).path / "report.html"
    seen = visit(page, width=1100, height=900)
    assert seen.console == []
    assert seen.dom.count("<script") == 1
    assert "<title>Ship " in seen.dom
    planted = page.read_text(encoding="utf-8").replace("<main>", "<main><script>document.title = 'other'</script>")
    page.write_text(planted, encoding="utf-8")
    seen = visit(page, width=1100, height=900)
    assert any("Content Security Policy" in line for line in seen.console)
    assert "<title>Ship " in seen.dom


@pytest.mark.parametrize("is_dark", [False, True])
def test_pictures_are_light_or_dark_as_the_reader_prefers(page: Path, is_dark: bool) -> None:
    picture = page.with_name(f"dark_{is_dark}.png")
    seen = visit(page, width=1100, height=1400, is_dark=is_dark, picture=picture)
    assert seen.console == []
    with Image.open(picture) as opened:
        assert opened.size == (1100, 1400)
        pixels = np.asarray(opened.convert("L"), np.float64)
    assert pixels.std() > 10
    assert (np.median(pixels) < 60) == is_dark
    assert (np.median(pixels) > 200) != is_dark


@pytest.mark.parametrize("width", [320, 390, 768, 980])
def test_nothing_sticks_out_of_a_small_screen(page: Path, width: int) -> None:
    found = result_of(page, WIDER_THAN_THE_PAGE, width=width)
    assert (found["client"], found["scroll"], found["out"]) == (width, width, [])


@pytest.mark.parametrize("width", [390, 1100])
def test_pointer_on_a_mark_shows_what_it_is(page: Path, width: int) -> None:
    before, mark, box, layer, after = result_of(page, POINT_AT_A_MARK, width=width)
    assert (before, after) == (True, True)
    assert mark["text"] == "dense\nmAP 1.00, 8.00 ms predicted\nncnn fp32, 1 thread"
    assert "an object of this class is there" in box["text"]
    assert layer["text"] == "model.0.conv\n100 → 40 channels"
    for shown in (mark, box, layer):
        assert not shown["hidden"]
        assert 0 <= shown["left"] < shown["right"] <= width
