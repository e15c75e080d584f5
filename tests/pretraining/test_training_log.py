"""The log's files: lines for people, rows for pictures, and what a resumed run keeps."""

from nnssl_reg.pretraining.training_log import TrainingLog


def test_lines_go_to_the_file_and_to_the_listener(tmp_path):
    heard = []
    log = TrainingLog(tmp_path, heard.append)
    log.line("step 1")
    assert heard == ["step 1"]
    (file,) = tmp_path.glob("training_log_*.txt")
    assert file.read_text().endswith("  step 1\n")


def test_rows_of_steps_that_will_be_done_again_are_forgotten(tmp_path):
    log = TrainingLog(tmp_path, print)
    for step in (10, 20, 30):
        log.row({"step": step, "masked_loss": 1.5})
    resumed = TrainingLog(tmp_path, print)
    resumed.forget_after(20)
    resumed.row({"step": 30, "masked_loss": 1.0})
    assert TrainingLog(tmp_path, print).rows == [
        {"step": 10, "masked_loss": 1.5}, {"step": 20, "masked_loss": 1.5}, {"step": 30, "masked_loss": 1.0}]  # fmt: skip


def test_a_row_cut_off_by_a_kill_is_dropped(tmp_path):
    (tmp_path / "training_log.jsonl").write_text('{"step": 10, "masked_loss": 1.5}\n{"step": 20, "mask')
    assert [row["step"] for row in TrainingLog(tmp_path, print).rows] == [10]
