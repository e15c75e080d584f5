"""Truths about failed_cases.csv: each step owns its rows, reasons survive commas and line ends, no failure means no file."""

from pathlib import Path

from nnssl_reg.commands.failed_cases import read_failures, record_failures


def test_a_step_replaces_its_own_rows_and_keeps_those_of_others(tmp_path):
    record_failures(tmp_path, "fingerprint", [("b", Path("b.nii"), 'truncated, "badly"\nvery')])
    record_failures(tmp_path, "preprocess", [("a", Path("a.nii"), "huge")])
    record_failures(tmp_path, "preprocess", [("c", Path("c.nii"), "huge")])
    rows = read_failures(tmp_path)
    assert [(r["step"], r["case"]) for r in rows] == [("fingerprint", "b"), ("preprocess", "c")]
    assert rows[0]["reason"] == 'truncated, "badly"\nvery'


def test_without_failures_there_is_no_file(tmp_path):
    path = record_failures(tmp_path, "preprocess", [("a", Path("a.nii"), "huge")])
    assert path.is_file()
    record_failures(tmp_path, "preprocess", [])
    assert not path.exists() and read_failures(tmp_path) == []
