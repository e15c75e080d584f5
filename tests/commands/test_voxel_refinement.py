"""The refinement at voxels: where local intensity tells more than MIND, and between images of one patient, nowhere else."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import nnssl_reg
from nnssl_reg.commands import register_pair, voxel_refinement
from nnssl_reg.commands.pair_types import Contrast, DeformedPair
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.planning.image_plan import plan_images
from nnssl_reg.registration.affine_init import InitialAlignment

CELLS_OF_TWO = {"registration.iterations": 10, "features.mind_stride": (2, 2, 2)}
QUICK = {"device": "cpu", "initial": "identity"}


def test_where_local_intensity_tells_more_than_mind_it_refines_the_field_at_every_voxel(images, monkeypatch):
    fixed, moving = images
    monkeypatch.setattr(voxel_refinement, "ONE_PATIENT", -1.0)  # these are of one
    found = []
    for least, steps in ((-1.0, 20), (1e9, 20), (-1.0, 0)):  # as if it told more, less, more
        monkeypatch.setattr(voxel_refinement, "TELLS_MORE", least)
        choices = {**QUICK, "overrides": {"registration.voxel_iterations": steps, **CELLS_OF_TWO}}
        found.append(nnssl_reg.register(fixed, moving, **choices).registered)
    finer, plain, without = found
    stage, cells = "refinement at voxels", [done.deformation.grid.spacing_mm[0] for done in (finer, plain)]
    assert stage in finer.seconds and stage not in plain.seconds and stage not in without.seconds
    assert cells[1] == pytest.approx(2 * cells[0]) and torch.equal(without.field.vectors_mm, plain.field.vectors_mm)
    left = [np.abs(done.field.warp(moving).array - fixed.array).mean() for done in (finer, plain)]
    assert left[0] < 0.9 * left[1]


def test_images_of_one_patient_are_refined_at_every_voxel_and_those_of_two_are_not(images, monkeypatch):
    monkeypatch.setattr(voxel_refinement, "TELLS_MORE", 1e9)
    monkeypatch.setattr(register_pair, "AGREES", -1.0)
    choices = {**QUICK, "overrides": {"registration.voxel_iterations": 2, **CELLS_OF_TWO}}
    fixed, noise = images[0], np.random.default_rng(0).standard_normal(images[0].array.shape).astype(np.float32)
    again = Image(fixed.array + 0.01 * noise, fixed.grid)
    other = Image(100 * gaussian_filter(noise, (0, 3, 3, 3)), fixed.grid)
    found = [nnssl_reg.register(fixed, moving, **choices) for moving in (again, other)]
    assert ["refinement at voxels" in done.registered.seconds for done in found] == [True, False]
    assert [done.registered.contrast.one_patient for done in found] == [True, False]


def test_two_patients_are_told_from_one_by_their_bodies_and_refined_less_firmly_by_wider_surroundings():
    grid = Grid((12, 12, 12), np.eye(4))
    plan, still = plan_images([grid]).registration, DisplacementField(torch.zeros(3, *grid.shape), grid)
    start, random = InitialAlignment(AffineTransform.identity(), "identity", {}), torch.Generator().manual_seed(0)
    body = torch.zeros(grid.shape)
    body[3:9, 3:9, 3:9] = 1.0
    fixed = Image(100 * body.numpy()[None], grid)
    one, other = (FeatureMap(torch.where(body > 0, torch.rand(4, *grid.shape, generator=random), 9.0), grid) for _ in range(2))

    def found(moving, agreement=1.2, bright=True, stride=(2, 2, 2), there=fixed):
        contrast = Contrast(agreement, bright, False)
        looked = DeformedPair((fixed, there), start, still, (one, moving), None, {}, contrast=contrast)
        return voxel_refinement.voxel_refinement(plan, stride, looked)

    again, two = found(one, 0.6), found(other)
    assert again.one_patient and not two.one_patient and two.radius > again.radius
    assert again.settings["smoothness"] > two.settings["smoothness"] == plan.voxel_smoothness
    assert again.settings["iterations"] > two.settings["iterations"] == plan.voxel_iterations
    cut = found(other, there=Image(np.roll(fixed.array, 3, axis=3), grid))  # at the upper end of the moving image
    assert cut.radius == again.radius and cut.settings["smoothness"] > two.settings["smoothness"] and not cut.one_patient
    assert found(other, agreement=0.9) is found(other, bright=False) is found(other, stride=(1, 1, 1)) is None


def test_a_body_is_cut_where_it_goes_on_beyond_the_field_of_view_and_not_where_it_only_touches():
    body = torch.zeros(12, 12, 12, dtype=torch.bool)
    body[3:9, 3:9, 3:9] = True
    assert not voxel_refinement.is_cut(body)
    body[9:, 5:7, 5:7] = True  # a ninth of the largest cross-section
    assert not voxel_refinement.is_cut(body)
    for axis in range(3):
        assert voxel_refinement.is_cut(body.narrow(axis, 0, 7)) and voxel_refinement.is_cut(body.narrow(axis, 5, 7))
