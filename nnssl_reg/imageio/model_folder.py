"""The folder of a shared model: which files it holds, their checksums, and that it appears whole or not at all."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnssl_reg.imageio.json_files import atomic_path

WEIGHTS = "encoder.safetensors"
PLANS = "nnsslPlans.json"
CONFIGURATION = "configuration.json"
CARD = "model_card.json"
CARD_TEXT = "MODEL_CARD.md"
CHECKSUMS = "SHA256SUMS"
CHECKED = (WEIGHTS, PLANS, CONFIGURATION, CARD, CARD_TEXT)
FILES = (*CHECKED, CHECKSUMS)
_ROW = re.compile(r"([0-9a-f]{64}) [ *](\S+)")


def is_shared_model(folder: str | Path) -> bool:
    """Whether a folder holds a shared model, as nnssl_export_model writes it, rather than a training run."""
    return (Path(folder) / WEIGHTS).is_file()


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS of the folder's files; `sha256sum -c SHA256SUMS` reads it, too."""
    rows = [f"{sha256(folder / name)}  {name}\n" for name in CHECKED]
    with atomic_path(folder / CHECKSUMS) as temporary:
        temporary.write_text("".join(rows), encoding="utf-8")


def verify_checksums(folder: str | Path, way_out: str) -> None:
    """Raise ValueError naming the first file that is missing or not the one that was written. way_out: ends the message."""
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no whole model: it lacks {', '.join(missing)}. {way_out}")
    rows = [_ROW.fullmatch(line) for line in (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()]
    stated = {row[2]: row[1] for row in rows if row}
    for name in CHECKED:
        if name not in stated:
            raise ValueError(f"{folder / CHECKSUMS} states no SHA-256 checksum of {name}. {way_out}")
        found = sha256(folder / name)
        if found != stated[name]:
            raise ValueError(f"{folder / name} was changed or damaged: its SHA-256 checksum is {found[:16]}..., {CHECKSUMS} "
                             f"says {stated[name][:16]}.... {way_out}")  # fmt: skip


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new empty folder, which takes the place of `folder` at the end; after an error nothing stays of it.

    overwrite: whether a shared model may be there already. Anything else that is there is never replaced: ValueError.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not is_shared_model(folder):
            raise ValueError(f"{folder} is there already and holds no shared model, so it is not replaced; choose another "
                             "place or name, or move it away.")  # fmt: skip
        if not overwrite:
            raise ValueError(f"{folder} holds a shared model already; give --overwrite to replace it, or choose another place "
                             "or name.")  # fmt: skip
    aside = folder.with_name(f".{folder.name}.replaced")
    with atomic_path(folder) as new:
        new.mkdir()
        yield new
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)
