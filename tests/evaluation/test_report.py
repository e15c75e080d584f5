"""report.html: every pair and number is there, nothing is loaded from outside, and hostile names stay text."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from nnssl_reg.evaluation import report
from nnssl_reg.evaluation.report import ReportPair, affordable, report_html
from nnssl_reg.evaluation.report_images import pair_pictures
from nnssl_reg.evaluation.summary import PairResult, Scores

HOSTILE = "</script><script>alert(1)</script><img src=http://example.org/x.png onerror=alert(2)> {{ 7 * 6 }} \"quoted\" 'too'"
GOOD = Scores(dice_initial=0.25, dice=0.875, hd95_mm=4.5, sd_log_jacobian=0.125, folding_percent=0.0625, confidence=0.9,
              confidence_flag="high", confidence_reason="the two directions differ by 1.0 mm only", label_dice={"3": 0.875},
              label_dice_initial={"3": 0.25})  # fmt: skip
POOR = Scores(
    sd_log_jacobian=0.5, folding_percent=0.0, confidence=0.2, confidence_flag="low", confidence_reason="the two " + HOSTILE
)
SIDECAR = {
    "seconds": 12.5,
    "peak_memory_gb": 1.75,
    "stages_seconds": {"features": 2.5, "convex adam": 10.0},
    "initial": {"name": "affine", "costs": {"identity": 0.5, HOSTILE: 0.25}},
    "displacement_mm": {"mean": 3.5, "max": 30.5},
    "transform_check": {"largest_difference": 0.03125, HOSTILE: HOSTILE},
    "settings": {"features": "mind", "plans": {"registration": {"smoothness": 0.625}}, "versions": {"torch": HOSTILE}},
}
NUMBERS = ("0.250", "0.875", "4.5", "0.125", "0.062", "12.5", "1.75", "high 0.90", "low 0.20", "0.625", "0.03125")
WORDS = ("first", "third", HOSTILE, "cut.nii.gz is truncated", "convex adam", "smoothness", "largest difference")


class Seen(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self.scripts = [], "", 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(report_scene) -> str:
    pairs = [ReportPair(PairResult("first", "f.nii.gz", "m.nii.gz", GOOD, 12.5), SIDECAR, pair_pictures(report_scene.images())),
             ReportPair(PairResult(HOSTILE, HOSTILE, HOSTILE, POOR, 5.0), {}, None),
             ReportPair(PairResult("third", "f", "m", error=f"cut.nii.gz is truncated {HOSTILE}"))]  # fmt: skip
    return report_html(f"study {HOSTILE}", "today", pairs)


def table_of(page: str) -> list[dict[str, str]]:
    """The data-sort values of the table's cells by heading, row by row."""
    table = re.search(r'<table id="pairs">.*?</table>', page, re.S).group()
    headings = re.findall(r"<th .*?>([^<]+)</button></th>", table)
    rows = re.findall(r"<tr class.*?</tr>", table, re.S)
    return [dict(zip(headings, re.findall(r'data-sort="(.*?)"', row))) for row in rows]


def test_every_pair_and_every_number_is_there(page):
    text = Seen(page).text
    for expected in (*NUMBERS, *WORDS):
        assert expected in text, expected


def test_the_cells_hold_what_they_are_sorted_by_and_nothing_for_the_unknown(page):
    first, hostile, failed = table_of(page)
    assert first["Dice after"] == "0.875" and float(first["Folding (%)"]) == 0.0625 and float(first["Confidence"]) == 0.9
    assert hostile["Dice after"] == "" and float(hostile["SDlogJ"]) == 0.5 and hostile["Memory (GB)"] == ""
    assert failed["Confidence"] == "" and "Dice after" not in failed


def test_low_confidence_and_failure_are_marked_in_the_row(page):
    assert re.findall(r'<tr class="(\w+)" data-pair="(\d)"', page) == [("high", "0"), ("low", "1"), ("failed", "2")]


def test_nothing_is_loaded_from_outside(page):
    for tag, attributes in Seen(page).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video"), tag
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    styles = "".join(re.findall(r"<style>.*?</style>", page, re.S))
    assert "url(" not in styles and "@import" not in styles
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page  # and the browser would refuse it
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts|import)\s*\(", page)


def test_hostile_names_and_labels_stay_text(page):
    tags = Seen(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 2  # the pictures of one pair, and the page's own
    assert not any(tag == "img" for tag, _ in tags) and not any(
        name.startswith("on") for _, attributes in tags for name in attributes
    )
    assert "{{ 7 * 6 }}" in page and "<script>alert" not in page


def test_pictures_are_json_that_comes_back_and_cannot_end_their_element(page, report_scene):
    stored = re.search(r'<script type="application/json" id="pictures-0">(.*?)</script>', page, re.S).group(1)
    assert "<" not in stored and ">" not in stored
    told = json.loads(stored)
    assert [plane["name"] for plane in told["planes"]] == ["axial", "coronal", "sagittal"]
    assert told["label_ids"] == [7, 300] and told["planes"][0]["sheets"]["fixed"]["data"].startswith("data:image/")


def test_every_heading_with_a_unit_names_it_and_every_metric_has_a_sentence():
    for column in report.COLUMNS:
        assert column.tip.endswith(".") and len(column.tip) > 40
        unit = {"hd95_mm": "(mm)", "folding_percent": "(%)", "seconds": "(s)", "peak_memory_gb": "(GB)"}.get(column.name, "")
        assert column.heading.endswith(unit)


def test_columns_that_no_pair_knows_are_left_out(page):
    unlabelled = report_html("x", "today", [ReportPair(PairResult("one", "f", "m", POOR, 5.0))])
    assert "Dice after" in table_of(page)[0] and ">Dice after" not in unlabelled and ">SDlogJ" in unlabelled


def test_a_run_without_any_success_still_has_a_page():
    text = Seen(report_html("x", "today", [ReportPair(PairResult("one", "f", "m", error="broken"))])).text
    assert "0 of 1" in text and "broken" in text


def test_pictures_of_the_least_confident_pairs_come_first_and_the_page_stays_bounded(monkeypatch):
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", 100)
    results = [PairResult(str(c), "f", "m", Scores(confidence=c)) for c in (0.9, 0.2, math.nan, 0.5)]
    assert affordable({0: 50, 1: 50, 2: 50, 3: 50}, results) == {1, 3}
    assert affordable({0: 20, 2: 20}, results) == {0, 2}
