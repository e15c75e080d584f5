"""Zips of models: what was packed comes out; everything else a zip can hold is refused by name, and nothing is written."""

import hashlib
import os
import stat
import zipfile

import pytest

from nnssl_reg.imageio.model_folder import CARD, CHECKED, FILES, WEIGHTS, verify_checksums, whole_folder, write_checksums
from nnssl_reg.imageio.model_zip import unpack_model_zip, write_model_zip


@pytest.fixture
def folder(tmp_path):
    """The files of a model, as far as zips and checksums care."""
    made = tmp_path / "model"
    made.mkdir()
    for name in CHECKED:
        (made / name).write_bytes(os.urandom(3000))
    write_checksums(made)
    return made


@pytest.fixture
def zipped(folder, tmp_path):
    write_model_zip(tmp_path / "model.zip", folder)
    return tmp_path / "model.zip"


def rezip(path, change) -> None:
    """The zip again, with each (ZipInfo, bytes) as change makes a list of them."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in change([(zipfile.ZipInfo(name), data) for name, data in members]):
            archive.writestr(member, data)


def refused(path, tmp_path, match) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=match):
        unpack_model_zip(path, out)
    assert not list(out.iterdir()) and {p.name for p in tmp_path.iterdir()} == {"model", "model.zip", "out"}


def test_what_was_packed_comes_out_and_the_same_folder_gives_the_same_zip(folder, zipped, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    unpack_model_zip(zipped, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {name: (folder / name).read_bytes() for name in FILES}
    verify_checksums(out, "")
    write_model_zip(tmp_path / "again.zip", folder)
    assert (tmp_path / "again.zip").read_bytes() == zipped.read_bytes()


def test_the_checksums_are_those_of_sha256sum(folder):
    rows = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert rows == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in CHECKED}


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil", "a/../../evil", "..\\evil", "C:evil", "..", "/"])
def test_names_that_lead_out_of_the_folder_are_refused(zipped, tmp_path, name):
    rezip(zipped, lambda members: [*members, (zipfile.ZipInfo(name), b"x")])
    refused(zipped, tmp_path, "leads out of the model's folder.*Nothing was imported")


@pytest.mark.parametrize(
    "name", ["weights.pkl", "checkpoint.pth", "setup.py", "sub/", "sub/encoder.safetensors", "SHA256SUMS "]
)
def test_members_that_a_model_does_not_have_are_refused(zipped, tmp_path, name):
    rezip(zipped, lambda members: [*members, (zipfile.ZipInfo(name), b"")])
    refused(zipped, tmp_path, f"member '{name}' is unknown.*no pickles")


def test_a_link_is_refused_even_under_a_known_name(zipped, tmp_path):
    def as_link(members):
        for member, data in members:
            if member.filename == CARD:
                member.external_attr, data = (stat.S_IFLNK | 0o777) << 16, b"/etc/passwd"
            yield member, data

    rezip(zipped, as_link)
    refused(zipped, tmp_path, "member 'model_card.json' is no plain file.*a link")


def test_a_bomb_is_refused_by_its_header_before_anything_is_unpacked(zipped, tmp_path):
    def bomb(members):
        for member, data in members:
            if member.filename == WEIGHTS:
                member.compress_type, data = zipfile.ZIP_DEFLATED, bytes(5_000_000)
            yield member, data

    rezip(zipped, bomb)
    refused(zipped, tmp_path, r"encoder.safetensors' unpacks to [\d,]+ times its size, expected at most 10 times")


def test_a_text_of_many_megabytes_is_refused(zipped, tmp_path):
    def swollen(members):
        return [(m, os.urandom(17_000_000) if m.filename == CARD else d) for m, d in members]

    rezip(zipped, swollen)
    refused(zipped, tmp_path, "model_card.json' has 17 MB, expected at most 16 MB")


def test_a_member_that_stands_there_twice_is_refused(zipped, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        rezip(zipped, lambda members: [*members, (zipfile.ZipInfo(CARD), b"another")])
    refused(zipped, tmp_path, "stands there 2 times, expected once")


def test_a_missing_member_is_named(zipped, tmp_path):
    rezip(zipped, lambda members: [item for item in members if item[0].filename != CARD])
    refused(zipped, tmp_path, "lacks model_card.json; a model's zip holds")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_zip_says_how_many_bytes_came(zipped, tmp_path, keep):
    whole = zipped.read_bytes()
    zipped.write_bytes(whole[: int(keep * len(whole) if keep < 1 else keep)])
    refused(zipped, tmp_path, f"is no whole zip file .{zipped.stat().st_size} bytes")


def test_an_encrypted_member_is_refused(zipped, tmp_path):
    data = bytearray(zipped.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    zipped.write_bytes(data)
    refused(zipped, tmp_path, "is encrypted")


def test_damaged_bytes_are_found_by_their_crc(zipped, tmp_path):
    data = bytearray(zipped.read_bytes())
    data[200] ^= 0xFF  # within the first member's stored bytes
    zipped.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="member encoder.safetensors is damaged .Bad CRC"):
        unpack_model_zip(zipped, out)


def test_bytes_changed_together_with_their_crc_are_found_by_the_checksum(zipped, tmp_path):
    rezip(zipped, lambda members: [(m, d[:-1] + b"!" if m.filename == WEIGHTS else d) for m, d in members])
    out = tmp_path / "out"
    out.mkdir()
    unpack_model_zip(zipped, out)
    with pytest.raises(ValueError, match="encoder.safetensors was changed or damaged.*SHA256SUMS says.*do this"):
        verify_checksums(out, "do this")


def test_a_checksum_that_is_not_stated_is_missed(folder):
    rows = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text("\n".join(rows[1:]))
    with pytest.raises(ValueError, match="states no SHA-256 checksum of encoder.safetensors"):
        verify_checksums(folder, "")


def test_a_folder_appears_whole_or_not_at_all_and_replaces_only_models(tmp_path, folder):
    class Killed(BaseException):
        pass

    before = (folder / CARD).read_bytes()
    with pytest.raises(Killed), whole_folder(folder, overwrite=True) as new:
        (new / WEIGHTS).write_bytes(b"half")
        raise Killed
    assert (folder / CARD).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ValueError, match="holds a shared model already; give --overwrite"), whole_folder(folder, False):
        pass
    with whole_folder(folder, overwrite=True) as new:
        (new / "file").write_text("new")
    assert [p.name for p in folder.iterdir()] == ["file"] and [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ValueError, match="holds no shared model, so it is not replaced"), whole_folder(folder, True):
        pass
