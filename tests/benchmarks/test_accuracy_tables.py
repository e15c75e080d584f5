"""The tables of accuracy.py: numbers that can be worked out by hand."""

import runpy
from pathlib import Path

TABLES = runpy.run_path(str(Path(__file__).with_name("accuracy_tables.py")))


def result(method: str, pair: int, dice: float, **scores) -> dict:
    known = {"dice": dice, "dice_initial": 0.1, "hd95_mm": 2.0, "hd95_mm_initial": 9.0, "sd_log_jacobian": 0.5,
             "folding_percent": 0.0, "label_dice": {"6": dice}, "label_dice_initial": {"6": 0.1}}  # fmt: skip
    return {"pair": f"p{pair}", "method": method, "seconds": float(pair), "peak_gb": 1.0, "scores": known | scores}


def cells(text: str, first: str) -> list[str]:
    """The first row that begins with a cell."""
    return next(line for line in text.splitlines() if line.startswith(f"| {first} |")).strip("| ").split(" | ")


def six_each() -> list[dict]:
    ours = [result("mind", i, 0.8 + 0.01 * i) for i in range(6)]
    return ours + [result("greedy", i, 0.7 + 0.006 * i) for i in range(6)]


def test_six_pairs_that_all_agree_have_the_smallest_p_there_is():
    text = TABLES["tables"]("Set", six_each(), {"6": "liver"}, "mind", ("greedy", "mind"))
    assert cells(text, "greedy")[-1] == f"{2 / 2**6:.3f}"  # both signs, of 2^6 equally likely ones
    assert cells(text, "mind")[-1] == "-"


def test_a_row_tells_the_mean_the_worst_and_the_median_time():
    text = TABLES["tables"]("Set", six_each(), {"6": "liver"}, "mind", ("greedy", "mind"))
    assert cells(text, "mind")[1:4] == ["6", "0.825", "0.800"]
    assert cells(text, "mind")[7] == "2.5"
    assert cells(text, "initial")[1:5] == ["6", "0.100", "0.100", "9.0"]
    assert cells(text, "liver") == ["liver", "0.100", "0.715", "0.825"]


def test_only_pairs_that_both_methods_have_are_compared():
    results = six_each() + [result("greedy", 6, 0.9999)]
    text = TABLES["tables"]("Set", results, {}, "mind", ("greedy", "mind"))
    assert cells(text, "greedy")[1] == "7"
    assert cells(text, "greedy")[-2:] == ["-0.110", f"{2 / 2**6:.3f}"]  # -0.1 - 0.004 (0 + ... + 5) / 6


def test_a_failed_pair_is_named_and_a_measure_that_a_pair_lacks_is_left_out():
    results = [result("mind", 0, 0.8, hd95_mm=None), result("mind", 1, 0.6), {"pair": "p2", "method": "mind", "error": "no"}]
    text = TABLES["tables"]("Set", results, {}, "mind", ())
    assert cells(text, "mind")[1:5] == ["2", "0.700", "0.600", "2.0"]
    assert "failed: mind, p2: no" in text
    assert cells(text, "6")[0] == "6"  # an organ without a name keeps its number


def test_the_seconds_of_each_stage_are_medians_of_the_pairs_that_have_it():
    told = ({"reading": 1.0, "field": 3.0}, {"reading": 2.0, "first match": 5.0, "field": 4.0}, {"reading": 9.0, "field": 8.0})
    results = [result("mind", i, 0.8) | {"stages_seconds": s} for i, s in enumerate(told)] + [result("greedy", 0, 0.7)]
    text = TABLES["tables"]("Set", results, {}, "mind", ("greedy", "mind"))
    assert text.splitlines()[-5:] == ["| s, median | mind |", "| --- | --- |", "| reading | 2.0 |", "| first match | 5.0 |",
                                      "| field | 4.0 |"]  # fmt: skip
