"""The three folders of the workflow, from flags or environment variables, read when a command runs."""

import os
from pathlib import Path


def raw_folder(flag: str | None = None) -> Path:
    """Where raw data sets lie: the flag -raw, else the variable nnssl_raw. It must exist."""
    folder = _stated("raw", flag)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"The folder of raw data {folder} ({_source('raw', flag)}) {what}; it should hold Dataset001_Name "
                         f"folders. {_way_out('raw')}")  # fmt: skip
    return folder


def preprocessed_folder(flag: str | None = None, make: bool = True) -> Path:
    """Where fingerprints, plans and preprocessed cases go: the flag -preprocessed, else nnssl_preprocessed.

    make: whether to make it if it is missing, and to check that it can be written to.
    """
    return _writable("preprocessed", flag) if make else _stated("preprocessed", flag)


def results_folder(flag: str | None = None, make: bool = True) -> Path:
    """Where trained models go: the flag -results, else the variable nnssl_results. make: as for preprocessed_folder."""
    return _writable("results", flag) if make else _stated("results", flag)


def stated_folder(kind: str, flag: str | None = None) -> Path | None:
    """The folder that flag or variable name, whether it exists or not; None where neither does. kind: raw, preprocessed, ..."""
    try:
        return _stated(kind, flag)
    except ValueError:
        return None


def _stated(kind: str, flag: str | None) -> Path:
    """The folder that flag or variable name, without quotes, ~ expanded."""
    text = os.environ.get(f"nnssl_{kind}", "") if flag is None else flag
    text = text.strip().strip("\"'").strip()
    if not text:
        what = f"-{kind} is empty" if flag is not None else f"nnssl_{kind} is not set"
        raise ValueError(f"{what}. {_way_out(kind)}")
    return Path(text).expanduser().absolute()


def _writable(kind: str, flag: str | None) -> Path:
    """The stated folder, made if missing, checked for writing."""
    folder = _stated(kind, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} ({_source(kind, flag)}) cannot be made: {error.strerror}. "
                         f"{_way_out(kind)}") from error  # fmt: skip
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"The folder {folder} ({_source(kind, flag)}) is not writable. {_way_out(kind)}")
    return folder


def _source(kind: str, flag: str | None) -> str:
    return f"from -{kind}" if flag is not None else f"from nnssl_{kind}"


def _way_out(kind: str) -> str:
    return f"Type: export nnssl_{kind}=/path/to/nnssl_{kind}   (or give -{kind} /path/to/nnssl_{kind})"
