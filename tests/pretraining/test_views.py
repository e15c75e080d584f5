"""Views: one geometry for teacher and student, other intensities, masks on half of the samples."""

from dataclasses import replace

import pytest
import torch

from nnssl_reg.pretraining.views import draw_geometry, draw_masks, make_views, part_geometry, rotations, window_size

SPACING = (1.0, 1.0, 2.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(plan, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, *window_size(plan, SPACING), generator=generator(7)) * 2 - 1


def test_without_intensity_changes_teacher_and_student_see_the_same_voxels(plan):
    views = make_views(windows(plan), replace(plan, intensity_strength=0.0), (4, 4, 4), SPACING, generator())
    assert views.teacher.shape == views.student.shape == (4, 1, 8, 8, 8)
    torch.testing.assert_close(views.teacher, views.student, rtol=0, atol=1e-6)


def test_with_intensity_changes_they_differ_but_the_same_seed_repeats_them(plan):
    first, again = (make_views(windows(plan), plan, (4, 4, 4), SPACING, generator(1)) for _ in range(2))
    assert (first.teacher - first.student).abs().max() > 0.05
    assert torch.equal(first.teacher, again.teacher) and torch.equal(first.student, again.student)
    assert torch.equal(first.mask, again.mask)


def test_without_zoom_rotation_and_flips_a_view_is_the_middle_of_its_window(plan):
    plan = replace(plan, zoom=(1.0, 1.0), rotation_degrees=0.0, intensity_strength=0.0)
    assert window_size(plan, SPACING) == (8, 8, 8)
    values = windows(plan)
    view = make_views(values, plan, (4, 4, 4), SPACING, generator()).teacher
    flips = [torch.allclose(view[i], flipped, atol=1e-5) for i in range(4) for flipped in all_flips(values[i])]
    assert sum(flips) == 4  # each is one of the eight mirror images of its window


def all_flips(values: torch.Tensor):
    for n in range(8):
        yield values.flip([1 + axis for axis in range(3) if n >> axis & 1])


def test_the_geometry_is_a_similarity_in_millimetres_about_the_middle(plan):
    size = window_size(plan, SPACING)
    matrices = draw_geometry(64, size, plan, SPACING, generator(3))
    middle_out = (torch.tensor([8.0, 8, 8], dtype=torch.float64) - 1) / 2
    middle_in = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    torch.testing.assert_close(matrices[:, :, :3] @ middle_out + matrices[:, :, 3], middle_in.expand(64, 3))
    spacing = torch.tensor(SPACING, dtype=torch.float64)
    in_mm = matrices[:, :, :3] * spacing[:, None] / spacing[None, :]
    gram = in_mm.transpose(1, 2) @ in_mm
    zoom = gram[:, 0, 0].sqrt()
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64) * (zoom**2)[:, None, None])
    assert plan.zoom[0] <= zoom.min() < zoom.max() <= plan.zoom[1]


def test_every_crop_lies_inside_its_window(plan):
    plan = replace(plan, rotation_degrees=20.0, zoom=(0.8, 1.25))
    size = window_size(plan, SPACING)
    matrices = draw_geometry(500, size, plan, SPACING, generator(4))
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 7.0], dtype=torch.float64)] * 3)
    points = torch.einsum("bij,nj->bni", matrices[:, :, :3], corners) + matrices[:, None, :, 3]
    assert points.min() > -0.75  # the middle of a voxel at the border is at 0
    assert (points - torch.tensor(size, dtype=torch.float64)).max() < -0.25


def test_further_views_are_parts_of_their_crops_in_other_intensities(plan):
    plan = replace(plan, global_crops=1, local_crops=3, local_crop_size=(4, 8, 4))
    values = windows(plan)
    views = make_views(values, plan, (4, 4, 4), SPACING, generator(2))
    assert [tuple(part.shape) for part in views.further] == [(4, 1, 8, 8, 8), (12, 1, 4, 8, 4)]
    plain = make_views(values, replace(plan, global_crops=0, local_crops=0), (4, 4, 4), SPACING, generator(2))
    assert torch.equal(plain.student, views.student) and torch.equal(plain.mask, views.mask) and plain.further == ()


def test_a_part_as_large_as_its_crop_is_the_crop_and_a_smaller_one_lies_inside(plan):
    plan = replace(plan, intensity_strength=0.0, global_crops=1, global_scale=(1.0, 1.0))
    views = make_views(windows(plan), plan, (4, 4, 4), SPACING, generator(2))
    for crop, part in zip(views.teacher, views.further[0]):
        assert any(torch.allclose(part, flipped, atol=1e-4) for flipped in all_flips(crop))
    inner = part_geometry(500, (8, 16, 8), (4, 4, 8), (0.3, 0.9), generator(5))
    ends = torch.tensor([[-0.5, 3.5], [-0.5, 3.5], [-0.5, 7.5]], dtype=torch.float64)  # of the part's outer voxels
    corners = torch.stack([inner[:, a, a, None] * ends[a] + inner[:, a, 3, None] for a in range(3)], dim=1)  # (500, 3, 2)
    assert corners.min() >= -0.5 - 1e-9
    assert (corners.amax(dim=(0, 2)) <= torch.tensor([7.5, 15.5, 7.5]) + 1e-9).all()
    edges = (corners[:, :, 1] - corners[:, :, 0]).abs() / torch.tensor([8.0, 16, 8])
    torch.testing.assert_close(edges, edges[:, :1].expand(500, 3))
    assert 0.3 <= edges.min() < 0.35 and 0.85 < edges.max() <= 0.9


def test_rotations_turn_by_their_angle():
    turn = rotations(torch.tensor([[0.0, 0.0, torch.pi / 2]], dtype=torch.float64))[0]
    torch.testing.assert_close(
        turn @ torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([0.0, 1, 0], dtype=torch.float64)
    )
    assert torch.linalg.det(rotations(torch.rand(5, 3, dtype=torch.float64))).tolist() == pytest.approx([1] * 5)


@pytest.mark.parametrize(("count", "masked"), [(8, 4), (5, 3), (2, 1), (1, 1)])
def test_the_larger_half_of_the_samples_is_masked_by_the_asked_share(plan, count, masked):
    mask = draw_masks(count, replace(plan, crop_size=(32, 32, 16)), (4, 4, 4), generator(5)).flatten(1)
    shares = mask.float().mean(dim=1)
    assert (shares[masked:] == 0).all()
    assert plan.mask_ratio[0] - 0.01 <= shares[:masked].min() <= shares[:masked].max() <= plan.mask_ratio[1] + 0.01
