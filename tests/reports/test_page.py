"""The page: one file that loads nothing, escapes what it shows, and leaves out what does not exist."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hand_run import HandRun, report, size
from test_differing_boxes import AP_OF_SOME, make_run

from reports import write_report
from reports.charts import Axis, candidates_charts, ridge_charts, scan_charts
from reports.text import bounds, count, direction, factor, macs, ms, percent, score, signed, titles

# Ends an attribute and a tag, begins others; without an apostrophe, which ends a name in the YAML.
HOSTILE = '"><script>document.title=1</script><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;'
FILE_HOSTILE = '"><img src=x onerror=alert(1)>'

SECTIONS = ("stages", "classes", "runtimes", "candidates", "scales", "layers", "cliff", "examples", "repeat")


class Page(HTMLParser):
    """Collects ids, addresses and text of a page."""

    # Elements that have no end.
    VOID = {"meta", "link", "img", "br", "hr", "line", "circle", "rect", "polyline", "polygon", "use", "image"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: set[str] = set()
        self.tips = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids += [values[name] for name in ("id",) if name in values]
        self.attributes |= set(values)
        self.tips += values.get("data-tip", "")
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.addresses += [values[name] for name in names if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))


def full_run(root: Path) -> HandRun:
    """A run with data for every section."""
    run = make_run(root, ap=(1.0, AP_OF_SOME))
    run.training("round1/sparse", 0.5)
    scan = {"points": [{"percent": p, "AP": 0.5 - p / 2, "AP50": 0.7 - p / 2} for p in (0.0, 0.3, 0.6)]}
    scan |= {"recommended": 0.3, "cliff": [0.3, 0.6], "limit": 0.9}
    run.cut("round1/prune", (size(10_000, 8.0), size(4_000, 3.0)), scan=scan)
    ridges = [[epoch, 20 - epoch, 3] for epoch in range(15)]
    scales = {"gamma": {"strength": 0.1, "verdict": "right", "reason": "<b>it</b>", "edges": [0, 1, 2, 3]}}
    scales["gamma"] |= {"epochs": [{"below_hundredth": 0.5}], "ridges": ridges}
    (run.path / "round1/sparse/sparsity.json").write_text(json.dumps(scales))
    run.export(
        report("b/best_ncnn_model", ms=3.5, ap=(AP_OF_SOME, AP_OF_SOME)),
        report("b/best_int8_ncnn_model", ms=2.0, ap=(AP_OF_SOME, 0.3), passed=False, precision="int8"),
        weights="x/round1/finetune/weights/best.pt",
    )
    return run


def hostile_run(root: Path) -> HandRun:
    """The full run, with markup wherever a data set or another program gives a name."""
    run = full_run(root)
    data = root / "data/data.yaml"
    data.write_text(data.read_text().replace("'cat", f"'cat{HOSTILE}"))
    for path in (*run.path.glob("**/*.json"), *run.path.glob("**/opt.yaml")):
        text = path.read_text(encoding="utf-8")
        for word in ("cat", "right", "model.0.conv", "fp32", "b/best_ncnn_model", "mAP lost", "1.0"):
            text = re.sub(rf"([\"']){re.escape(word)}\b", lambda found: found[0] + json.dumps(HOSTILE)[1:-1], text)
        path.write_text(text, encoding="utf-8")
    image = root / "data/images/val/val0.png"
    for old in (image, root / "data/labels/val/val0.txt"):
        old.rename(old.with_name(f"val0 {FILE_HOSTILE}{old.suffix}"))
    write_report(run.path)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = full_run(tmp_path_factory.mktemp("page"))
    write_report(run.path)
    return run.path


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def test_page_loads_nothing_from_elsewhere(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses
    assert [address[:40] for address in page.addresses if not address.startswith(("data:", "#"))] == []
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket|import\(", text)
    assert "default-src 'none'" in text


def test_page_has_every_section_once_and_links_lead_to_them(folder: Path) -> None:
    page = page_of(folder)
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert page.open == []


def test_page_shows_the_numbers_of_the_content(folder: Path) -> None:
    page, content = page_of(folder), content_of(folder)
    assert "Ship best_ncnn_model: 2.5 times smaller, 2.7 times as fast (predicted)" in page.text
    for row in content["networks"]:
        assert score(row["scores"]["AP"]) in page.text
    failure = "mAP lost: 0.2, at most 0.01 allowed"
    for text in ("8.00 ms", "3.00 ms", "3.50 ms", "10\u202f000", "passed", "failed", failure):
        assert text in page.text
    assert "steeply between 30\u202f% and 60\u202f%" in page.text
    assert bounds(content["answer"]["score"]["interval"]) in page.text


def test_text_of_others_is_escaped(folder: Path) -> None:
    assert "<b>it</b>" not in (folder / "report.html").read_text(encoding="utf-8")
    assert "<b>it</b>" in page_of(folder).text


def test_names_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    """Class names, files, settings and results come from data sets and programs of others."""
    run = hostile_run(tmp_path)
    text = (run.path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert text.count("<script") == 1
    assert {name for name in page.attributes if name.startswith("on")} == set()
    assert HOSTILE not in text
    for words in (page.text, page.tips):
        assert HOSTILE in words
    assert len(content_of(run.path)["examples"]["shown"]) > 0
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)


def test_only_the_script_of_the_page_runs(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in text


def test_each_example_image_is_in_the_page_once(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    shown = content_of(folder)["examples"]["shown"]
    assert len(shown) == text.count("data:image/jpeg;base64,") == text.count('<use href="#example') == 3
    # Both networks find a cat; only the first finds the dog.
    assert text.count('class="box-object"') == 2
    assert text.count('class="box-nothing"') == 1


def test_page_without_data_has_no_empty_sections(tmp_path: Path) -> None:
    run = HandRun.create(tmp_path / "exp")
    run.training("dense", 0.6)
    write_report(run.path)
    page = page_of(run.path)
    assert [name for name in page.ids if name in SECTIONS] == ["stages", "classes", "repeat"]
    assert "Nothing is pruned yet" in page.text


def test_older_run_without_histograms_shows_its_plot(tmp_path: Path) -> None:
    run = HandRun.create(tmp_path / "exp")
    run.round()
    (run.path / "round1/sparse/sparsity.json").write_text(json.dumps({"gamma": {"verdict": "right", "epochs": []}}))
    (run.path / "round1/sparse/gamma_ridge.png").write_bytes(b"\x89PNG plot")
    write_report(run.path)
    assert any(address.startswith("data:image/png;base64,") for address in page_of(run.path).addresses)


def test_training_that_chooses_its_channels_first_has_no_verdict(tmp_path: Path) -> None:
    run = HandRun.create(tmp_path / "exp")
    run.round()
    own = {"strength": None, "epochs": [{"below_hundredth": 0.5}], "edges": [0, 1, 2], "ridges": [[0, 4], [2, 2]]}
    (run.path / "round1/sparse/sparsity.json").write_text(json.dumps({"gamma": own}))
    write_report(run.path)
    text = page_of(run.path).text
    assert "|gamma| At the end 50\u202f% of the channels are below .01." in text
    assert "None" not in text


def test_run_of_many_classes_folds_their_table(tmp_path: Path) -> None:
    run = HandRun.create(tmp_path / "exp")
    per_class = {f"class {i}": {"AP": 0.5, "AP50": 0.6} for i in range(25)}
    run.training("dense", 0.5, metrics={"AP": 0.5, "AP50": 0.6, "per_class": per_class, "images": 9})
    write_report(run.path)
    assert "25 classes" in page_of(run.path).text


def test_image_that_is_damaged_by_now_takes_the_examples_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path)
    (tmp_path / "data/images/val/val2.png").write_bytes(b"no image any more")
    write_report(run.path)
    assert "examples" not in page_of(run.path).ids
    assert "predictions.json does not fit the data as it is now (2); measure the network again" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (score(0.5), ".500"),
        (score(0.9999), "1.00"),
        (score(None), "–"),
        (signed(0.0321), "+.032"),
        (signed(-0.5), "−.500"),
        (signed(1e-5), "±.000"),
        (bounds((-0.01, 0.02), is_signed=True), "−.010 to +.020"),
        (count(1234567), "1\u202f234\u202f567"),
        (macs(4_010_000_000), "4.01 G"),
        (macs(534_000_000), "534 M"),
        (macs(5_340_000), "5.34 M"),
        (ms(8.214), "8.21 ms"),
        (ms(8.1), "8.10 ms"),
        (ms(120.4), "120 ms"),
        (factor(2.64), "2.6"),
        (factor(12.4), "12"),
        (direction(0.01), "up"),
        (direction(-0.01), "down"),
        (direction(1e-5), ""),
        (percent(0.25), "25\u202f%"),
        (percent(0.9996), "99.9\u202f%"),
        (percent(1.0), "100\u202f%"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_stages_are_called_by_round_only_where_there_are_several() -> None:
    one = [{"stage": name} for name in ("dense", "round1/prune", "round1/finetune")]
    assert titles({"networks": one}) == {
        **{"dense": "dense", "round1/prune": "pruned"},
        "round1/finetune": "fine-tuned",
    }
    assert titles({"networks": [*one, {"stage": "round2/prune"}]})["round2/prune"] == "pruned, round 2"


def test_axes_end_at_ticks_and_put_values_between() -> None:
    axis = Axis.linear(0.55, start=100, end=0)
    assert axis.ticks == pytest.approx((0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    assert (axis.at(0), axis.at(0.3), axis.at(0.6)) == (100, 50, 0)
    high = Axis.linear(0.476, low=0.393, start=100, end=0)
    assert high.ticks == pytest.approx((0.38, 0.4, 0.42, 0.44, 0.46, 0.48))
    assert (high.low, high.at(0.38), high.at(0.48)) == (high.ticks[0], 100, 0)
    log = Axis.log([1.0, 100.0], start=0, end=100)
    assert log.at(10) == pytest.approx(50)
    assert all(log.low <= tick <= log.high for tick in log.ticks)
    assert 2 <= len(log.ticks) <= 7


def test_marks_of_every_chart_lie_inside_it() -> None:
    rows = [
        {"name": str(i), "score": 0.1 * i, "milliseconds": 2.0**i, "is_predicted": i > 3, "runtime": "ncnn"}
        for i in range(8)
    ]
    for chart in candidates_charts(rows, y_label="mAP"):
        assert all(0 < mark["left"] < chart.width and 0 < mark["top"] < chart.height for mark in chart.marks)
        assert [mark["left"] for mark in chart.marks] == sorted(mark["left"] for mark in chart.marks)
        tops = [mark["top"] for mark in chart.marks]
        assert tops == sorted(tops, reverse=True)
    scan = {"points": [{"percent": 0.1, "AP": 0.4}, {"percent": 0.5, "AP": 0.2}], "recommended": 0.3, "limit": 0.95}
    for chart in scan_charts(scan, ["AP"], labels=["mAP"]):
        assert all(chart.x.start < rule["left"] < chart.x.end for rule in chart.marks)
    ridges = [{"epoch": epoch, "channels": [9, 4]} for epoch in range(3)]
    for chart in ridge_charts({"scale": "gamma", "edges": [0, 1, 2], "ridges": ridges}):
        heights = [float(pair.split(",")[1]) for mark in chart.marks for pair in mark["line"].split()]
        assert all(0 < height < chart.height for height in heights)


def test_scores_that_are_alike_are_told_apart() -> None:
    def heights(*scores: float) -> list[float]:
        rows = [{"name": "a", "score": score, "milliseconds": 2.0, "is_predicted": False} for score in scores]
        return [mark["top"] for mark in candidates_charts(rows, y_label="mAP")[0].marks]

    low, high = heights(0.60, 0.62)
    assert low - high > 100
    nothing, half = heights(0.0, 0.5)
    assert nothing - half > 250
    assert heights(0.5, 0.5)[0] > 0


def test_one_candidate_is_no_plot() -> None:
    assert candidates_charts([{"name": "a", "score": 1, "milliseconds": 1, "is_predicted": False}], y_label="") == []
