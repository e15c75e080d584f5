"""report.html in headless Chromium: it scrolls, it flickers, it sorts, and the console stays empty."""

import html
import json
import re
import shutil
import subprocess

import pytest

from nnssl_reg.evaluation.report import ReportPair, report_html
from nnssl_reg.evaluation.report_images import pair_pictures
from nnssl_reg.evaluation.summary import PairResult, Scores

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

# What a user does, and what is seen afterwards; the findings are left in the page, which Chromium prints.
STEPS = """
const found = {}, wait = (ms) => new Promise((done) => setTimeout(done, ms));
const ready = async (pair) => {
  for (let i = 0; i < 500 && byId("viewer").dataset.ready !== String(pair); i++) await wait(10);
};
const event = { bubbles: true, cancelable: true };
const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, ...event }));
const axial = document.querySelector("figure[data-plane=axial]"), canvas = axial.querySelector("canvas");
const seen = () => canvas.toDataURL(), mark = () => axial.querySelector(".shown").textContent;
const press = (value) => document.querySelector(`[data-value=${value}]`).click();
const height = () => document.documentElement.scrollHeight;
(async () => {
  await ready(0);
  byId("stage").scrollIntoView();
  const slice = () => axial.querySelector("input").valueAsNumber, tall = height();
  const start = [slice(), seen()];
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  found.drawn = pixels.some((value, i) => i % 4 < 3 && value > 100);
  key("ArrowUp");
  found.arrow = [slice() - start[0], seen() !== start[1]];
  key("ArrowDown");
  found.back = [slice() - start[0], seen() === start[1]];
  const wheel = new WheelEvent("wheel", { deltaY: 1, ...event });
  canvas.dispatchEvent(wheel);
  found.wheel = [slice() - start[0], wheel.defaultPrevented];
  press("flicker"); press("fixed_label"); press("other_label"); press("before");
  const fixed = [mark(), seen()];
  key(" ");
  const moving = [mark(), seen()];
  key(" ");
  found.flicker = [fixed[0], moving[0], mark(), moving[1] !== fixed[1], seen() === fixed[1]];
  const looks = {};
  for (const value of ["slider", "checkers", "grid", "jacobian", "apart", "features", "fixed_label"]) {
    press(value);
    looks[seen()] = value;
  }
  found.looks = Object.keys(looks).length;
  found.bar = !byId("bar").classList.contains("empty");
  found.jump = height() - tall;
  const ids = () => rows().map((row) => row.dataset.pair).join("");
  const heading = (i) => table.tHead.rows[0].cells[i].querySelector("button").click();
  heading(3); found.ascending = ids();
  heading(3); found.descending = ids();
  key("n"); await ready(1);
  found.second = [byId("name").textContent, byId("stage").hidden, byId("nothing").hidden];
  table.querySelector("tr.failed").click(); await ready(2);
  found.failed = [byId("name").textContent, byId("stage").hidden, byId("nothing").hidden];
  found.outside = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
"""


@pytest.fixture(scope="module", params=[1200, 500], ids=["screen", "phone"])
def visit(request, report_scene, tmp_path_factory):
    """What the steps found, and what the console said."""
    scores = [Scores(dice_initial=0.2, dice=value, confidence=0.9, confidence_flag="high", confidence_reason="fine")
              for value in (0.9, 0.7)]  # fmt: skip
    pairs = [ReportPair(PairResult(f"pair {i}", "f", "m", s, 1.0), {}, pair_pictures(report_scene.images(i)))
             for i, s in enumerate(scores)]  # fmt: skip
    pairs.append(ReportPair(PairResult("<b>failed</b>", "f", "m", error="broken </script>")))
    page = report_html("study", "today", pairs)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page.replace("</body>", f"<script>{STEPS}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={request.param},900",
             f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=180)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    result = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert result, (console, done.stdout[-300:], done.stderr[-1000:])
    return json.loads(html.unescape(result.group(1))), console


def test_the_console_stays_empty_and_nothing_is_loaded(visit):
    found, console = visit
    assert console == [] and found["outside"] == 0


def test_arrows_and_wheel_scroll_through_the_slices(visit):
    found, _ = visit
    assert found["drawn"] and found["arrow"] == [1, True] and found["back"] == [0, True] and found["wheel"] == [1, True]


def test_the_space_bar_flickers_between_fixed_and_moving(visit):
    found, _ = visit
    assert found["flicker"] == ["fixed", "before", "fixed", True, True]


def test_every_switch_changes_the_picture_and_nothing_jumps(visit):
    found, _ = visit
    assert found["looks"] == 7 and found["bar"] and found["jump"] == 0


def test_the_table_sorts_with_the_unknown_last_and_pairs_can_be_chosen(visit):
    found, _ = visit
    assert found["ascending"] == "102" and found["descending"] == "012"
    assert found["second"] == ["pair 1", False, True] and found["failed"] == ["<b>failed</b>", True, False]
