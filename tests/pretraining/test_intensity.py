"""Intensity changes: nothing at strength 0, each for itself, and the same for the same seed."""

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform

from nnssl_reg.pretraining import intensity
from nnssl_reg.pretraining.intensity import apply_change, draw_change


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, size: int = 12) -> torch.Tensor:
    """Smooth images in -1..1, the last of them constant."""
    coarse = torch.rand(count, 1, 4, 4, 4, generator=generator(9)) * 2 - 1
    out = torch.nn.functional.interpolate(coarse, size=(size, size, size), mode="trilinear")
    out[-1] = 0.3
    return out


def test_strength_zero_changes_nothing():
    torch.testing.assert_close(apply_change(images(), draw_change(6, 0.0, generator())), images(), rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    first, again, other = (apply_change(images(), draw_change(6, 1.0, generator(s))) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_image_gets_its_own_change_whatever_stands_beside_it():
    change = draw_change(6, 1.0, generator(3))
    together = apply_change(images(), change)
    for i in range(6):
        alone = apply_change(images()[i : i + 1], change.of(slice(i, i + 1)))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_changed_images_stay_finite_and_about_in_range():
    for seed in range(20):
        out = apply_change(images(), draw_change(6, 1.0, generator(seed)))
        assert out.isfinite().all()
        assert out.abs().max() < 8


def test_a_falling_curve_swaps_dark_and_bright():
    falling = torch.linspace(1, -1, intensity.REMAP_POINTS).expand(6, -1)
    torch.testing.assert_close(intensity.remap_intensities(images(), falling), -images(), rtol=0, atol=1e-5)


def test_the_curve_passes_through_its_knots_and_goes_on_beyond_them():
    curve = torch.tensor([[-1.0, 0.5, 1.0]])
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.2]).view(1, 1, 1, 1, 6)
    expected = torch.tensor([-1.0, -0.25, 0.5, 0.75, 1.0, 1.1])
    torch.testing.assert_close(intensity.remap_intensities(values, curve).flatten(), expected)


def test_random_convolutions_keep_mean_and_energy_of_the_variation():
    weights = draw_change(6, 1.0, generator(4)).gin_weights
    out = intensity.random_convolutions(images(), weights, torch.tensor([1.0, 0.5, 0.2, 1.0, 0.0, 0.0]))
    assert torch.equal(out[4:], images()[4:])
    assert (out[:4] - images()[:4]).abs().max() > 0.05
    variation = images() - images().mean(dim=(2, 3, 4), keepdim=True)
    for i in range(4):
        changed = out[i] - images()[i].mean()
        assert float(changed.norm()) == pytest.approx(float(variation[i].norm()), rel=1e-3)


def test_blur_keeps_a_constant_and_spreads_a_point_as_a_gaussian_does():
    assert torch.equal(intensity.blur(images(), torch.zeros(6)), images())
    point = torch.zeros(2, 1, 9, 9, 9)
    point[:, :, 4, 4, 4] = 1
    out = intensity.blur(point, torch.tensor([0.7, 1.0]))
    for sample, sigma in zip(out[:, 0], (0.7, 1.0)):
        assert float(sample.sum()) == pytest.approx(1, abs=1e-5)
        assert float(sample[5, 4, 4] / sample[4, 4, 4]) == pytest.approx(
            torch.exp(torch.tensor(-0.5 / sigma**2)).item(), rel=1e-4
        )
    torch.testing.assert_close(intensity.blur(images()[-1:], torch.tensor([1.2])), images()[-1:])


@pytest.mark.parametrize(("name", "field"), [("remap_probability", "remap"), ("gin_probability", "gin_share"),
                                             ("low_resolution_probability", "coarseness"),
                                             ("window_probability", "window")])  # fmt: skip
def test_each_probability_is_the_share_of_images_that_are_changed_so(name, field):
    def changed(probability: float) -> torch.Tensor:
        drawn = vars(draw_change(2000, 1.0, generator(6), **{name: probability}))[field]
        neutral = {"remap": torch.linspace(-1, 1, intensity.REMAP_POINTS), "gin_share": 0, "coarseness": 1,
                   "window": torch.tensor([-1.0, 1.0])}[field]  # fmt: skip
        return (drawn != neutral).view(2000, -1).any(dim=1)

    assert not changed(0.0).any() and changed(1.0).float().mean() > 0.99
    assert float(changed(0.3).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_the_other_changes_are_the_same_whatever_the_probability_of_one():
    without, always = (draw_change(6, 1.0, generator(7), gin_probability=p) for p in (0.0, 1.0))
    assert torch.equal(without.remap, always.remap) and torch.equal(without.gamma, always.gamma)
    assert torch.equal(without.noise_seed, always.noise_seed)


def test_a_window_spreads_what_lies_in_it_over_all_intensities():
    values = torch.linspace(-1, 1, 9).view(1, 1, 9, 1, 1)
    out = intensity.cut_to_window(values.expand(2, 1, 9, 1, 1), torch.tensor([[-0.5, 0.5], [-1.0, 1.0]]))
    assert torch.equal(out[1], values[0])
    torch.testing.assert_close(out[0].flatten(), torch.tensor([-1, -1, -1, -0.5, 0, 0.5, 1, 1, 1]))
    low, high = draw_change(500, 1.0, generator(8), window_probability=1.0).window.unbind(dim=1)
    assert low.min() >= -1 and high.max() <= 1 and (high - low).min() >= 2 * intensity.NARROWEST


def test_coarser_voxels_keep_what_is_constant_in_them_and_lose_what_alternates():
    even = torch.arange(12).remainder(2).float().expand(2, 1, 12, 12, 12) * 2 - 1  # -1, 1, -1, 1 along the last axis
    out = intensity.coarsen(even, torch.tensor([1, 2]))
    assert torch.equal(out[0], even[0]) and out[1].abs().max() < 1e-6
    flat = torch.full((2, 1, 12, 12, 12), 0.3)
    torch.testing.assert_close(intensity.coarsen(flat, torch.tensor([2, 3])), flat)
    ramp = torch.linspace(-1, 1, 12).expand(1, 1, 12, 12, 12)
    inner = (..., slice(2, -2))
    torch.testing.assert_close(intensity.coarsen(ramp, torch.tensor([3]))[inner], ramp[inner])  # nothing is shifted


def test_the_noise_of_an_image_has_its_deviation_and_follows_its_seed_alone():
    quiet = torch.zeros(3, 1, 24, 24, 24)
    out = intensity.add_noise(quiet, torch.tensor([0.1, 0.0, 0.2]), torch.tensor([5, 6, 5]))
    assert float(out[0].std()) == pytest.approx(0.1, rel=0.05) and not out[1].any()
    torch.testing.assert_close(out[2], 2 * out[0])


def test_the_bias_field_is_smooth_and_leaves_the_darkest_value_dark():
    bias = torch.randn(2, 1, 3, 3, 3, generator=generator(5)) * 0.3
    assert torch.equal(intensity.multiply_bias(torch.full((2, 1, 8, 8, 8), -1.0), bias), torch.full((2, 1, 8, 8, 8), -1.0))
    gain = intensity.multiply_bias(torch.zeros(2, 1, 8, 8, 8), bias) + 1
    assert gain.diff(dim=-1).abs().max() < 0.7
    assert (gain - 1).abs().max() > 0.05


def test_gamma_keeps_mean_and_deviation_and_the_order_of_intensities():
    gamma = torch.tensor([1.5, 0.7, 1.0, 1.0, 1.2, 1.0])
    out = intensity.raise_to_gamma(images(), gamma, torch.tensor([False, True, False, True, False, False]))
    assert torch.equal(out[2:4], images()[2:4])
    for i in (0, 1, 4):
        assert float(out[i].mean()) == pytest.approx(float(images()[i].mean()), abs=1e-4)
        assert float(out[i].std()) == pytest.approx(float(images()[i].std()), rel=1e-3)
        assert (out[i].flatten()[images()[i].flatten().argsort()].diff() > -1e-6).all()  # but for rounding
        assert (out[i] - images()[i]).abs().max() > 0.01


def test_gamma_of_a_batch_is_that_of_batchgeneratorsv2_of_one_image_after_the_other():
    gamma, inverted = torch.tensor([1.5, 0.7, 1.0, 0.8, 1.2, 1.3]), torch.tensor([False, True, False, True, False, True])
    transform = GammaTransform(gamma=1.0, p_invert_image=0.0, synchronize_channels=False, p_per_channel=1.0, p_retain_stats=1.0)
    chosen = torch.nonzero(gamma != 1).flatten()
    theirs = transform.apply({"image": images()[:, 0].clone()}, apply_to_channel=chosen, invert_image=inverted[chosen],
                             retain_stats=torch.ones(len(chosen), dtype=torch.bool), gamma=gamma[chosen])["image"]  # fmt: skip
    torch.testing.assert_close(intensity.raise_to_gamma(images(), gamma, inverted)[:, 0], theirs, rtol=1e-4, atol=1e-5)
