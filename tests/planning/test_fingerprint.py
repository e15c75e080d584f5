"""Truths about the fingerprint: what is measured is what is there, along canonical axes, whatever the order of cases."""

import numpy as np
import pytest

from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.json_files import read_dataclass, write_json
from nnssl_reg.planning.fingerprint import FINGERPRINT_VERSION, Fingerprint, case_fingerprint, merge, modality_doubt


def image_of(array: np.ndarray, affine=None) -> Image:
    return Image(array.astype(np.float32)[None], Grid(array.shape, np.eye(4) if affine is None else affine))


def boxed(shape=(20, 24, 16), inside=((4, 14), (6, 20), (3, 12)), low=-1000.0, seed=0) -> np.ndarray:
    array = np.full(shape, low)
    box = tuple(slice(a, b) for a, b in inside)
    array[box] = np.random.default_rng(seed).normal(50, 20, array[box].shape)
    return array


def test_shape_spacing_and_crop_are_along_canonical_axes():
    array = boxed()
    affine = np.array([[0, 0, -2.0, 0], [3.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])  # x is array axis 2, reversed
    case, _ = case_fingerprint(image_of(array, affine), "0", "CT")
    assert case.shape == (16, 20, 24)
    assert case.spacing_mm == (2.0, 3.0, 1.5)
    assert case.cropped_shape == (9, 10, 14)


def test_statistics_are_those_of_the_foreground():
    array = boxed()
    case, quantiles = case_fingerprint(image_of(array), "0", "CT")
    body = array[array > -500]
    assert np.isclose(case.mean, body.mean(), atol=1e-3) and np.isclose(case.std, body.std(), atol=1e-3)
    assert np.isclose(case.foreground_fraction, body.size / array.size)
    assert np.isclose(quantiles[128], np.median(body), atol=0.1) and case.minimum == -1000


def test_a_channels_percentiles_are_those_of_its_pooled_foreground_with_equal_weight_per_case():
    arrays = [boxed(seed=s) + 10 * s for s in range(4)]
    records = {f"c{s}": case_fingerprint(image_of(a), "0", "CT") for s, a in enumerate(arrays)}
    channel = merge("Dataset001_X", records, {"0": "CT"}).channels["0"]
    pooled = np.concatenate([a[a > -500] for a in arrays])
    assert np.allclose(  # within a twelfth of the standard deviation
        [channel.percentile_01_0, channel.median, channel.percentile_99_0], np.percentile(pooled, (1, 50, 99)), atol=1.5
    )
    assert np.isclose(channel.mean, pooled.mean(), atol=1e-2) and np.isclose(channel.std, pooled.std(), atol=1e-2)


def test_the_order_of_cases_does_not_matter():
    records = {f"c{s}": case_fingerprint(image_of(boxed(seed=s)), str(s % 2), "CT") for s in range(4)}
    backwards = dict(reversed(list(records.items())))
    names = {"0": "CT", "1": "CT"}
    assert merge("D", records, names) == merge("D", backwards, names)


def test_a_fingerprint_comes_back_from_its_file(tmp_path):
    fingerprint = merge("D", {"c": case_fingerprint(image_of(boxed()), "0", "CT")}, {"0": "CT"})
    write_json(tmp_path / "f.json", fingerprint)
    assert read_dataclass(Fingerprint, tmp_path / "f.json", FINGERPRINT_VERSION) == fingerprint


def test_no_case_at_all_and_a_constant_image_are_errors():
    with pytest.raises(ValueError, match="Dataset007_X has no readable image"):
        merge("Dataset007_X", {}, {"0": "CT"})
    with pytest.raises(ValueError, match="constant"):
        case_fingerprint(image_of(np.zeros((5, 5, 5))), "0", "MR")


def test_a_ct_named_mr_and_an_mr_named_ct_are_doubted_with_their_intensities():
    ct, _ = case_fingerprint(image_of(boxed()), "0", "MR")
    assert "-1000" in modality_doubt(ct, "MR") and modality_doubt(ct, "CT") is None
    mr, _ = case_fingerprint(image_of(10 * (boxed(low=0.0) + 20).clip(0)), "0", "CT")
    assert "below 0" in modality_doubt(mr, "CT") and modality_doubt(mr, "MR") is None
