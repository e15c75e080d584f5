"""Folders: the flag beats the variable, and what is missing is answered with the line to type."""

import os
import subprocess
import sys

import pytest

from nnssl_reg.paths import preprocessed_folder, raw_folder, results_folder

FOLDERS = {"raw": raw_folder, "preprocessed": preprocessed_folder, "results": results_folder}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_flag_beats_the_variable(kind, tmp_path, monkeypatch):
    for name in ("variable", "flag"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(f"nnssl_{kind}", str(tmp_path / "variable"))
    assert FOLDERS[kind](None) == tmp_path / "variable"
    assert FOLDERS[kind](str(tmp_path / "flag")) == tmp_path / "flag"


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_variable_that_is_not_set_gives_the_line_to_type_and_the_flag(kind, monkeypatch):
    monkeypatch.delenv(f"nnssl_{kind}", raising=False)
    with pytest.raises(ValueError, match=f"nnssl_{kind} is not set.*export nnssl_{kind}=/path/to/nnssl_{kind}.*-{kind} "):
        FOLDERS[kind](None)


@pytest.mark.parametrize("quoted", ['"{}"', "'{}'", " {} "])
def test_quotes_and_spaces_around_a_folder_are_dropped(quoted, tmp_path, monkeypatch):
    monkeypatch.setenv("nnssl_raw", quoted.format(tmp_path))
    assert raw_folder() == tmp_path


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "raw").mkdir()
    assert raw_folder("~/raw") == tmp_path / "raw"


def test_raw_must_exist_and_the_others_are_made(tmp_path):
    with pytest.raises(ValueError, match="missing.*from -raw.*does not exist"):
        raw_folder(str(tmp_path / "missing"))
    for kind in ("preprocessed", "results"):
        assert FOLDERS[kind](str(tmp_path / kind / "deep")).is_dir()


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        raw_folder(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be made"):
        results_folder(str(tmp_path / "file" / "results"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere, so the question itself is replaced
    with pytest.raises(ValueError, match="is not writable.*export nnssl_results"):
        results_folder(str(tmp_path))


def test_the_environment_is_not_read_at_import(tmp_path):
    code = "import nnssl_reg.paths, os; os.environ['nnssl_raw'] = '/'; print(nnssl_reg.paths.raw_folder())"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("nnssl_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == "/", done.stderr
