"""The kernels for GPUs against plain torch: on a GPU, and on small arrays as Triton's interpreter runs them."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnssl_reg.features.mind import PAIRS, mind_features, mind_ssc
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.geometry.sampling import sample_points
from nnssl_reg.registration import kernels_torch
from nnssl_reg.registration.cells import Cells
from nnssl_reg.registration.convex_adam import kernels_for, register_features
from nnssl_reg.registration.instance_optimization import optimise
from nnssl_reg.registration.kernels_torch import displacements
from nnssl_reg.registration.unfolding import folded_cells_torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# a moving lattice turned, finer along one axis and coarser along another; many positions fall outside
MATRIX = np.array([[1.3, 0.2, -0.1, -1.0], [-0.2, 0.6, 0.1, 1.5], [0.1, -0.1, 0.9, 0.4]])
SHAPES = [
    ((5, 4, 6), (6, 5, 8), False),
    ((5, 4, 6), (6, 5, 8), True),
    ((4, 1, 5), (3, 4, 1), True),
    ((1, 1, 1), (2, 2, 2), False),
]
WEIGHTS = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.1, 4.0], [2.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def device() -> torch.device:
    pytest.importorskip("triton", reason="Triton is not installed")
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("no CUDA device, and the interpreter was not asked for")
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="module")
def kernels(device):
    from nnssl_reg.registration import kernels_cuda

    return kernels_cuda


def some(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape) > 0.3)


def normal(*shape, seed=0, scale=1.0) -> torch.Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape)).float()


def cells_on(device, values, unit=1.0, mask=None) -> Cells:
    return Cells(values.to(device), unit, None if mask is None else mask.to(device))


def test_triton_interprets_the_kernels_as_plain_torch():
    """All tests of this file that need no real GPU, in a process whose Triton is an interpreter on the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-m", "gpu and not whole", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]


def test_kernels_of_triton_are_only_loaded_for_devices_that_run_them():
    script = ("import sys, torch; from nnssl_reg.registration.convex_adam import kernels_for; "
              "names = [kernels_for(torch.device(d)).__name__ for d in ('cpu', 'mps')]; "
              "print(*names, 'triton' in sys.modules)")  # fmt: skip
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["nnssl_reg.registration.kernels_cpu", "nnssl_reg.registration.kernels_torch", "False"]


@pytest.mark.gpu
@pytest.mark.parametrize(("fixed_shape", "moving_shape", "masked"), SHAPES)
@pytest.mark.parametrize("channels", [1, 12, 13, 20, 36])
def test_the_energy_gradient_is_the_plain_one(device, kernels, fixed_shape, moving_shape, channels, masked):
    masks = [some(*shape, seed=5) if masked else None for shape in (fixed_shape, moving_shape)]
    features = normal(*fixed_shape, channels), normal(*moving_shape, channels, seed=1)
    field = normal(3, *fixed_shape, seed=2, scale=1.5)
    plain = kernels_torch.energy_gradient(*(Cells(v, 0.5, m) for v, m in zip(features, masks)), field, MATRIX, WEIGHTS)
    ours = [cells_on(device, v, 0.5, m) for v, m in zip(features, masks)]
    found = kernels.energy_gradient(*ours, field.to(device), MATRIX, WEIGHTS.to(device))
    assert torch.allclose(found.cpu(), plain, rtol=1e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 12, 13])
def test_the_energy_gradient_of_packed_features_is_the_plain_one(device, kernels, channels):
    shapes, field = ((5, 4, 6), (6, 5, 8)), normal(3, 5, 4, 6, seed=2)
    plain, ours, middle = [], [], torch.linspace(-1, 1, channels)
    for seed, shape in enumerate(shapes):
        values = normal(channels, *shape, seed=seed)
        unit, mask = kernels.smallest_unit(6.0), some(*shape, seed=5)
        packed = kernels.packed(values.to(device), middle.to(device), unit, mask.to(device))
        assert packed.dtype == torch.int16 and packed.shape == (*shape, 16 if channels == 13 else channels)
        ours.append(Cells(packed, unit, mask.to(device)))
        plain.append(Cells(kernels_torch.packed(values, middle, 1.0, mask), 1.0, mask))
    found = kernels.energy_gradient(*ours, field.to(device), MATRIX, WEIGHTS.to(device))
    assert torch.allclose(found.cpu(), kernels_torch.energy_gradient(*plain, field, MATRIX, WEIGHTS), rtol=1e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "passes"), [((3, 6, 5, 7), 3), ((3, 6, 5, 7), 1), ((3, 20, 4, 5), 2), ((5, 1, 2, 3), 5),
                                               ((1, 2, 1, 1), 3), ((3, 3, 4, 2), 0)])  # fmt: skip
def test_smoothing_is_the_plain_one(device, kernels, shape, passes):
    values = normal(*shape)
    before = values.to(device)
    found = kernels.smooth(before, passes)
    assert torch.allclose(found.cpu(), kernels_torch.smooth(values, passes), atol=1e-5)
    assert torch.equal(before.cpu(), values) and found.data_ptr() != before.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("passes", [0, 3])
def test_repeated_adam_steps_are_the_plain_ones(device, kernels, passes):
    start, slope = normal(3, 7, 5, 3), normal(3, 7, 5, 3, seed=1)

    def descended(module, on) -> torch.Tensor:
        field, moments = start.clone().to(on), torch.zeros(2, *start.shape, device=on)
        gradient, pull = torch.empty_like(field), slope.to(on)

        def take(step) -> None:
            torch.mul(field, pull, out=gradient)
            module.smooth_adam_step(field, gradient, moments, passes, 0.3, step)

        module.repeat(take, 5, torch.device(on))
        return field.cpu()

    assert torch.allclose(descended(kernels, device), descended(kernels_torch, torch.device("cpu")), atol=1e-4)


@pytest.mark.gpu
def test_a_field_is_refined_as_by_the_plain_steps(device, kernels):
    """All of Adam's loop, whose steps share their memory and on a GPU are a graph."""
    shapes, start = ((6, 5, 4), (6, 5, 7)), 0.3 * normal(3, 6, 5, 4, seed=2)

    def refined(module, on) -> torch.Tensor:
        cells = []
        for seed, shape in enumerate(shapes):
            values = normal(5, *shape, seed=seed).to(on)
            cells.append(Cells(module.packed(values, torch.zeros(5, device=on), 1e-3, None), 1e-3))
        return optimise(*cells, MATRIX, start.to(on), WEIGHTS.to(on), 5, 0.1, 2, module).cpu()

    plain = refined(kernels_torch, torch.device("cpu"))
    assert (refined(kernels, device) - plain).abs().max() < 0.02 < (plain - start).abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize(("factor", "channels", "masked"), [((1, 1, 1), 4, False), ((2, 2, 1), 12, True), ((1, 1, 1), 1, True)])
def test_block_means_are_the_plain_ones(device, kernels, factor, channels, masked):
    mask = torch.ones(6, 5, 8, dtype=torch.bool) if masked else None
    if masked:
        mask[4:] = False
    values, field = normal(6, 5, 8, channels), normal(3, 5, 6, 7, seed=1)
    plain = kernels_torch.block_means(Cells(values, 0.5, mask), MATRIX, field, factor, [1, 2, 1])
    found = kernels.block_means(cells_on(device, values, 0.5, mask), MATRIX, field.to(device), factor, [1, 2, 1])
    assert torch.equal(found[1].cpu(), plain[1]) and plain[1].any() and not plain[1].all()
    assert torch.allclose(found[0].cpu(), plain[0], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("radius", "channels", "passes"), [((1, 1, 1), 7, 0), ((1, 1, 3), 12, 2), ((1, 1, 1), 1, 2), ((1, 1, 1), 100, 0)]
)
def test_the_cost_volume_is_the_plain_one(device, kernels, radius, channels, passes):
    shape = (4, 3, 5)  # long enough that smoothing meets cells that are not at an edge
    padded = tuple(n + 2 * r for n, r in zip(shape, radius))
    fixed, moving = normal(*shape, channels), normal(*padded, channels, seed=1)
    valid, counts = torch.from_numpy(np.random.default_rng(0).random(padded) > 0.4), some(*shape)
    valid[:, :, : 2 * radius[2] + 1] = False  # cells without any valid candidate
    room = torch.full((*shape, len(displacements(radius))), 7.0)
    plain = kernels_torch.cost_volume(fixed, moving, valid, counts, radius, passes, room)
    found = kernels.cost_volume(*(t.to(device) for t in (fixed, moving, valid, counts)), radius, passes, room.to(device))
    assert torch.allclose(found.cpu(), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("radius", "weight"), [((1, 2, 1), 0.0), ((1, 2, 1), 0.03), ((3, 3, 3), 1.0)])
def test_the_coupled_argmin_is_the_plain_one(device, kernels, radius, weight):
    steps = displacements(radius)
    cost, field = normal(4, 2, 1, len(steps)).abs(), normal(3, 4, 2, 1, seed=1)
    least = torch.empty(cost.shape[:3], device=device)
    found = kernels.coupled_argmin(*(t.to(device) for t in (cost, steps, field)), weight, least)
    assert torch.equal(found.cpu(), kernels_torch.coupled_argmin(cost, steps, field, weight, least.cpu()))
    alike = kernels.coupled_argmin(
        torch.zeros_like(cost).to(device), steps.to(device), torch.zeros_like(field).to(device), weight, least
    )
    assert not alike.any()  # of equals, the shortest


@pytest.mark.gpu
@pytest.mark.parametrize(("moved", "fill"), [(False, None), (False, -2.0), (True, None), (True, -2.0)])
def test_arrays_through_an_affine_map_are_the_plain_ones(device, turned_grid, moved, fill):
    from nnssl_reg.geometry import lattice_triton
    from nnssl_reg.geometry.sampling import _linear_and_matrix

    grid, target = turned_grid((6, 5, 7), (1, 2, 1.5)), turned_grid((7, 1, 6), 1.4, (20, -30, 50), (1, 0, 2))
    values, vectors = normal(2, 6, 5, 7), normal(3, 7, 1, 6, seed=1)
    plain = sample_points(values, grid, target.points_mm() + (vectors if moved else 0), fill=fill)
    vectors = vectors.to(device) if moved else None
    found = lattice_triton.warp_lattice(values.to(device), vectors, *_linear_and_matrix(target, grid), fill, target.shape)
    assert torch.allclose(found.cpu(), plain, atol=1e-4)


@pytest.mark.gpu
def test_the_inverse_of_a_field_is_the_plain_one(device, turned_grid):
    from nnssl_reg.geometry import inverse_triton

    grid, target = turned_grid((6, 5, 7), (3, 4, 3.5), (5, 3, -4)), turned_grid((4, 3, 2), 3, (20, -30, 50), (1, 0, 2))
    field = DisplacementField(kernels_torch.smooth(normal(3, 6, 5, 7, scale=6.0), 2), grid)
    plain = field.inverse(target).vectors_mm
    found = inverse_triton.invert_lattice(
        field.vectors_mm.to(device), *field._ways(), np.array(target.affine), 1e-4, 30, target.shape
    )
    assert plain.abs().max() > 1 and (found.cpu() - plain).abs().max() < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 4, 5), (4, 1, 1), (1, 1, 1)])
def test_the_search_for_folds_is_the_plain_one(device, kernels, shape):
    from nnssl_reg.registration import unfolding_triton

    field = 0.4 * normal(3, *shape)
    assert torch.equal(unfolding_triton.folded_cells(field.to(device), 0.05).cpu(), folded_cells_torch(field, 0.05))


@pytest.mark.gpu
@pytest.mark.parametrize(("radius", "dilation", "noise", "stride"), [(1, 2, 0.0, (1, 2, 1)), (0, 1, 0.5, (1, 3, 2))])
def test_mind_on_cells_is_the_mean_of_mind(device, kernels, radius, dilation, noise, stride):
    from nnssl_reg.features import mind_triton

    image = 100 + 30 * normal(4, 6, 4)
    plain = F.avg_pool3d(mind_ssc(image, radius, dilation, noise)[None], stride, stride=stride)[0]
    found = mind_triton.mind_cells(image.to(device), radius, dilation, noise, stride)
    assert len(found) == len(PAIRS) and torch.allclose(found.cpu(), plain, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.whole
@pytest.mark.parametrize(("symmetric", "masked"), [(False, False), (True, True)])
def test_a_registration_on_the_gpu_is_that_of_the_cpu(device, settings, textured_features, turned_grid, symmetric, masked):
    grid, other = turned_grid((40, 36, 44), 2.0), turned_grid((44, 40, 38), 2.2, (4, -3, 5))
    maps = textured_features(grid), textured_features(other, lambda p: p + 3 * torch.sin(p.flip(0) / 15))
    masks = [some(*m.grid.shape) | (torch.arange(m.grid.shape[2]) > 9) if masked else None for m in maps]
    fields = []
    for on in (torch.device("cpu"), device):
        features = [FeatureMap(m.values.float().to(on), m.grid) for m in maps]
        counted = [m if m is None else m.to(on) for m in masks]
        match = register_features(*features, initial=AffineTransform.identity(), symmetric=symmetric, fixed_mask=counted[0],
                                  moving_mask=counted[1], **settings)  # fmt: skip
        fields.append(match.field.vectors_mm.cpu() / 2)
    assert kernels_for(device).__name__.endswith("kernels_cuda")
    apart = (fields[0] - fields[1]).norm(dim=0)
    assert fields[0].norm(dim=0).max() > 1 and apart.mean() < 0.01 and apart.quantile(0.99) < 0.05


@pytest.mark.gpu
@pytest.mark.whole
def test_mind_and_fields_on_the_gpu_are_those_of_the_cpu(device, body_image, turned_grid):
    grid = turned_grid((40, 36, 44), (2.0, 2.5, 2.0), (10, 5, -8))
    image, target = torch.from_numpy(body_image(grid).array[0]), turned_grid((30, 33, 35), 2.4, (3, 4, 5))
    one, two = (mind_features(image.to(on), grid, ((1, 2), (2, 2)), 0.1, (2, 2, 2)) for on in ("cpu", device))
    assert torch.allclose(one.values, two.values.cpu(), atol=1e-3)
    vectors = 4 * torch.stack([torch.sin(torch.linspace(0, 6, grid.shape[a])).view([-1 if b == a else 1 for b in range(3)])
                               .expand(grid.shape) for a in (1, 2, 0)])  # fmt: skip
    for method in (
        lambda f: f.on(target).vectors_mm,
        lambda f: f.inverse(target).vectors_mm,
        lambda f: f.jacobian_determinant(),
    ):
        there, here = (method(DisplacementField(vectors.to(on), grid)).cpu() for on in (device, "cpu"))
        assert (there - here).abs().max() < 5e-3


@pytest.mark.gpu
def test_a_unit_grid_and_no_motion_are_exact(device, kernels):
    from nnssl_reg.geometry import lattice_triton
    from nnssl_reg.geometry.sampling import _linear_and_matrix

    values, grid = normal(2, 4, 5, 3).to(device), Grid((4, 5, 3), np.eye(4))
    assert torch.equal(lattice_triton.warp_lattice(values, None, *_linear_and_matrix(grid, grid), None, grid.shape), values)
