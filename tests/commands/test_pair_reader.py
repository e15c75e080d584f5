"""Pairs as they are read: names that the intensities contradict are told, and labels are those of the chosen volume."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

import nnssl_reg
from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_reader import PairReader, read_pair
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import write_image
from nnssl_reg.imageio.pairs import Pair

CPU = torch.device("cpu")


@pytest.fixture
def bodies(turned_grid, body_image) -> list[Image]:
    """An image like MR and one like CT."""
    mr, ct = (body_image(turned_grid((20, 18, 16), 5.0, (0, 3 * i, 0))) for i in range(2))
    return [Image(mr.array - mr.array.min() + 200, mr.grid), Image(ct.array * 4 - 1000, ct.grid)]


@pytest.fixture
def pair(tmp_path, bodies) -> Pair:
    for name, image in zip("ab", bodies):
        write_image(tmp_path / f"{name}.nii.gz", image)
    return Pair("ab", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


def doubts(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "but its intensities" in record.getMessage()]


def test_an_image_named_as_another_modality_is_warned_of_once_with_mind_alone(pair, caplog):
    wrong = replace(pair, fixed_channel="CT", moving_channel="T2")
    store = FeatureStore("mind", None, None, CPU, kept_bytes=0)
    with PairReader([wrong, replace(wrong, id="again"), replace(pair, id="unnamed")], store) as reader:
        assert all(images.exception() is None for _, images in reader)
    said = doubts(caplog)
    assert len(said) == 2 and "a.nii.gz is named CT" in said[0] and "b.nii.gz is named T2" in said[1]
    assert "fixed_channel" in said[0] and "channel_names" in said[0]


def test_python_warns_too_and_right_names_pass(bodies, caplog):
    quick = {"features": "mind", "device": "cpu", "initial": "identity", "overrides": {"registration.iterations": 2}}
    nnssl_reg.register(*bodies, fixed_channel="MR", moving_channel="CT", **quick)
    assert doubts(caplog) == []
    nnssl_reg.register(*bodies, fixed_channel="CT", **quick)
    assert len(doubts(caplog)) == 1 and "the fixed image is named CT" in doubts(caplog)[0]


@pytest.mark.parametrize("role", ["fixed_label", "fixed_mask", "rigid_mask"])
def test_labels_and_masks_with_as_many_volumes_as_their_image_go_by_the_chosen_one(pair, bodies, tmp_path, role):
    image, ones = bodies[0], np.ones(bodies[0].grid.shape, np.uint8)
    for name, volumes in {"a4": [image.array[0], 2 * image.array[0]], "two": [ones, 3 * ones], "three": [ones] * 3}.items():
        nib.save(nib.Nifti1Image(np.stack(volumes, axis=-1), image.grid.affine), tmp_path / f"{name}.nii.gz")
    pair = replace(pair, fixed=tmp_path / "a4.nii.gz", **{role: tmp_path / "two.nii.gz"})
    read = read_pair(pair, FeatureStore("mind", None, None, CPU, volume=1, kept_bytes=0))
    found = {"fixed_label": read.fixed.label, "fixed_mask": read.fixed.mask, "rigid_mask": read.rigid_mask}[role]
    assert found.array.min() == found.array.max() == 3 and read.fixed.image.array.max() == 2 * image.array.max()
    with pytest.raises(ValueError, match="three.nii.gz is 4-D.*if their image has as many.*or split it"):
        read_pair(replace(pair, **{role: tmp_path / "three.nii.gz"}), FeatureStore("mind", None, None, CPU, 1, 0))
