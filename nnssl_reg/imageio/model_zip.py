"""Shared models as zip files: written the same from the same folder, and read with suspicion, member by member."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from nnssl_reg.imageio.json_files import atomic_path
from nnssl_reg.imageio.model_folder import FILES, WEIGHTS

MB = 1_000_000
# bytes, and uncompressed / compressed: the largest size of network, about 320 million weights, has 1.3 GB in float32, and
# weights hardly compress; plans reach a ratio of about 10, a bomb of zeros 1000
MOST_OF_WEIGHTS = (2_000 * MB, 10)
MOST_OF_TEXT = (16 * MB, 200)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of every member: the same model gives the same zip
WAY_OUT = "Ask for the file again, as nnssl_export_model wrote it."


def write_model_zip(path: Path, folder: Path) -> None:
    """Pack the files of a shared model's folder, which appear at the top of the zip."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in FILES:
            member = zipfile.ZipInfo(name, EPOCH)
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.compress_type = zipfile.ZIP_STORED if name == WEIGHTS else zipfile.ZIP_DEFLATED
            with open(folder / name, "rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 2**20)


def unpack_model_zip(path: Path, folder: Path) -> None:
    """Write the members of a model's zip into `folder`, which exists and is empty.

    Raises ValueError naming the member, before anything is written where its headers tell: for a name that is not one of
    FILES or stands there twice, a link, encryption, a size or ratio beyond the bounds; later for damaged bytes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the .zip that nnssl_export_model wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            for member in members:
                _unpack(path, archive, member, folder / member.filename)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip file ({path.stat().st_size} bytes: {error}). {WAY_OUT}") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.orig_filename for member in members]
    for member in members:
        problem = _problem(member) or (f"stands there {names.count(member.filename)} times, expected once"
                                       if names.count(member.filename) > 1 else None)  # fmt: skip
        if problem:
            raise ValueError(f"{path}: its member {member.orig_filename[:80]!r} {problem}. Nothing was imported. {WAY_OUT}")
    missing = [name for name in FILES if name not in names]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; a model's zip holds {', '.join(FILES)}. {WAY_OUT}")


def _problem(member: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member by what its header says, None if nothing is."""
    name, mode = member.orig_filename, member.external_attr >> 16
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
        return "leads out of the model's folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return f"is no plain file but of kind {oct(stat.S_IFMT(mode))} ({'a link' if stat.S_ISLNK(mode) else 'not a link'})"
    if name not in FILES:
        return f"is unknown; a model's zip holds only {', '.join(FILES)}, and no pickles"
    if member.flag_bits & 0x1:
        return "is encrypted, expected plain"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {member.compress_type}, expected 0 (stored) or 8 (deflated)"
    most, most_ratio = MOST_OF_WEIGHTS if name == WEIGHTS else MOST_OF_TEXT
    if member.file_size > most:
        return f"has {member.file_size / MB:,.0f} MB, expected at most {most / MB:,.0f} MB"
    if member.file_size > most_ratio * max(member.compress_size, 1):
        ratio = member.file_size / max(member.compress_size, 1)
        return f"unpacks to {ratio:,.0f} times its size, expected at most {most_ratio} times"
    return None


def _unpack(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write one member, its bytes counted and, by zipfile, its CRC checked."""
    left = member.file_size
    try:
        with archive.open(member) as source, open(target, "xb") as out:
            while block := source.read(2**20):
                left -= len(block)
                if left < 0:
                    raise zipfile.BadZipFile("more bytes than its header says")
                out.write(block)
        if left:
            raise zipfile.BadZipFile(f"{left} bytes are missing")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: an unknown method of compression
        raise ValueError(f"{path}: its member {member.filename} is damaged ({error}), expected {member.file_size} bytes. "
                         f"Nothing was imported. {WAY_OUT}") from error  # fmt: skip
