"""Random intensity changes of a batch, each sample its own: parameters are drawn first, then applied on the device.

Images are about -1..1 and stay about there. At strength 1 the changes are as strong as published for DINO-Reg style training.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

REMAP_POINTS = 8  # knots of the random intensity curve
BIAS_CELLS = 3  # cells per axis of the random bias field before interpolation
GIN_LAYERS = 3
GIN_CHANNELS = 2  # as published
NARROWEST = 0.25  # window, as a share of all intensities
COARSEST = 3  # times that voxels may be enlarged
BLUR_RADIUS = 3  # voxels; holds the largest sigma, 1.2


@dataclass(frozen=True)
class IntensityChange:
    """What is done to each of B images, in this order. Neutral values leave an image as it is."""

    window: torch.Tensor  # (B, 2): the intensities that become -1 and 1, what lies beyond is cut off
    remap: torch.Tensor  # (B, REMAP_POINTS): new intensity of the knots at -1..1
    gin_weights: tuple[torch.Tensor, ...]  # one (B, out, in, 3, 3, 3) per layer
    gin_share: torch.Tensor  # (B,): share of the convolved image in the blend
    bias: torch.Tensor  # (B, 1, cells, cells, cells): log gain
    gamma: torch.Tensor  # (B,)
    inverted: torch.Tensor  # (B,) bool: gamma acts on the negative
    contrast: torch.Tensor  # (B,): gain about the mean
    shift: torch.Tensor  # (B,)
    blur: torch.Tensor  # (B,): sigma in voxels
    noise: torch.Tensor  # (B,): standard deviation
    coarseness: torch.Tensor  # (B,) whole numbers: voxels per edge that are averaged to one
    noise_seed: torch.Tensor  # (B,) int64: so that an image's noise is its own, whatever stands beside it

    def of(self, samples: torch.Tensor | slice) -> "IntensityChange":
        """The change of some of the images."""
        return IntensityChange(**{name: tuple(part[samples] for part in value) if isinstance(value, tuple) else value[samples]
                                  for name, value in vars(self).items()})  # fmt: skip


def draw_change(batch_size: int, strength: float, generator: torch.Generator, remap_probability: float = 0.5,
                gin_probability: float = 0.5, low_resolution_probability: float = 0.0,
                window_probability: float = 0.0) -> IntensityChange:  # fmt: skip
    """Parameters for B images. strength 0 changes nothing, 1 is the published strength. generator: on the CPU."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch_size, *shape, generator=generator)

    def sometimes(probability: float) -> torch.Tensor:
        return (torch.rand(batch_size, generator=generator) < probability).float()

    return IntensityChange(
        remap=_draw_curve(batch_size, generator) * (sometimes(remap_probability) * min(strength, 1.0))[:, None]
        + torch.linspace(-1, 1, REMAP_POINTS).expand(batch_size, -1),
        gin_weights=_draw_convolutions(batch_size, generator),
        gin_share=sometimes(gin_probability) * uniform(0, min(strength, 1.0)),
        bias=torch.randn(batch_size, 1, *[BIAS_CELLS] * 3, generator=generator)
        * (sometimes(0.5) * 0.3 * strength).view(-1, 1, 1, 1, 1),
        gamma=torch.exp(sometimes(0.5) * uniform(-0.5, 0.5) * strength),
        inverted=torch.rand(batch_size, generator=generator) < 0.5,
        contrast=torch.exp(sometimes(0.5) * uniform(-0.4, 0.4) * strength),
        shift=sometimes(0.5) * uniform(-0.3, 0.3) * strength,
        blur=sometimes(0.3) * uniform(0.4, 1.2) * strength,
        noise=sometimes(0.5) * uniform(0, 0.1) * strength,
        noise_seed=torch.randint(2**62, (batch_size,), generator=generator),
        coarseness=1
        + sometimes(low_resolution_probability * min(strength, 1.0)).long()
        * torch.randint(1, COARSEST, (batch_size,), generator=generator),
        window=_draw_windows(sometimes(window_probability) * min(strength, 1.0), uniform),
    )


def apply_change(images: torch.Tensor, change: IntensityChange) -> torch.Tensor:
    """Changed images (B, 1, X, Y, Z) float32."""
    images = remap_intensities(cut_to_window(images, change.window), change.remap)
    images = random_convolutions(images, change.gin_weights, change.gin_share)
    images = multiply_bias(images, change.bias)
    images = raise_to_gamma(images, change.gamma, change.inverted)
    images = images + _volume(change.shift, images) + (_volume(change.contrast, images) - 1) * (images - _mean(images))
    images = coarsen(blur(images, change.blur), change.coarseness)
    return add_noise(images, change.noise, change.noise_seed)


def cut_to_window(images: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Images with the window (B, 2) of each spread over -1..1, as one looks at CT; -1..1 leaves an image."""
    chosen = torch.nonzero((window[:, 0] > -1) | (window[:, 1] < 1)).flatten()
    if len(chosen) == 0:
        return images
    index = chosen.to(images.device)
    low, high = (_volume(bound, images) for bound in window[chosen].unbind(dim=1))
    return images.index_copy(0, index, ((images[index] - low) * (2 / (high - low)) - 1).clamp(-1, 1))


def remap_intensities(images: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Images through a piecewise linear curve each, knots (B, P) evenly over -1..1, the outer pieces going on beyond."""
    curve = curve.to(images.device)
    position = ((images.flatten(1) + 1) * ((curve.shape[1] - 1) / 2)).contiguous()  # (B, V)
    left = position.floor().clamp(0, curve.shape[1] - 2)
    index = left.long()
    low, slope = curve.gather(1, index), curve.diff(dim=1).gather(1, index)
    return (low + slope * (position - left).clamp(-1, 2)).view_as(images)


def random_convolutions(images: torch.Tensor, weights: tuple[torch.Tensor, ...], share: torch.Tensor) -> torch.Tensor:
    """GIN (Ouyang et al. 2022): shallow random convolutions of the image less its mean, blended with it, energy kept."""
    chosen = torch.nonzero(share > 0).flatten()
    if len(chosen) == 0:
        return images
    index = chosen.to(images.device)
    mean = _mean(images[index])
    inputs = images[index] - mean
    x = inputs.transpose(0, 1)  # (1, n, X, Y, Z): samples as groups
    for i, weight in enumerate(weights):
        x = F.leaky_relu(x) if i > 0 else x
        own = weight[chosen].flatten(0, 1).to(images.device, images.dtype)  # (n * out, in, 3, 3, 3)
        x = F.conv3d(F.pad(x, [1] * 6, mode="replicate"), own, groups=len(chosen))
    part = _volume(share[chosen], images)
    mixed = part * x.transpose(0, 1) + (1 - part) * inputs
    mixed = mixed * (_energy(inputs) / _energy(mixed).clamp(min=1e-5))
    return images.index_copy(0, index, mixed + mean)


def multiply_bias(images: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A smooth gain about the darkest value -1, from log gains on a coarse lattice (B, 1, c, c, c)."""
    if not bias.any():
        return images
    gain = F.interpolate(bias.to(images.device), size=images.shape[2:], mode="trilinear").exp()
    return (images + 1) * gain - 1


def raise_to_gamma(images: torch.Tensor, gamma: torch.Tensor, inverted: torch.Tensor) -> torch.Tensor:
    """Gamma (B,) over each image's range, mean and deviation kept; inverted (B,): of the negative. Gamma 1 leaves an image.

    What batchgeneratorsv2's GammaTransform does with one image after the other.
    """
    chosen = torch.nonzero(gamma != 1).flatten()
    if len(chosen) == 0:
        return images
    index = chosen.to(images.device)
    sign = _volume(1 - 2 * inverted[chosen].float(), images)
    x = images[index] * sign
    low, high = x.amin(dim=(1, 2, 3, 4), keepdim=True), x.amax(dim=(1, 2, 3, 4), keepdim=True)
    raised = ((x - low) / (high - low).clamp(min=1e-7)) ** _volume(gamma[chosen], images) * (high - low) + low
    raised = (raised - _mean(raised)) * (_deviation(x) / _deviation(raised).clamp(min=1e-7)) + _mean(x)
    return images.index_copy(0, index, raised * sign)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian smoothing with its own sigma (B,) in voxels for each image, edges replicated; sigma 0 leaves an image."""
    chosen = torch.nonzero(sigma > 0).flatten()
    if len(chosen) == 0:
        return images
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    taps = torch.exp(-0.5 * (offsets / sigma[chosen, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(images.device, images.dtype)  # (n, taps)
    index = chosen.to(images.device)
    x = images[index].transpose(0, 1)  # (1, n, X, Y, Z): samples as groups
    for axis in range(3):
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = BLUR_RADIUS  # F.pad counts from the last axis
        kernel = taps.view(-1, 1, *[taps.shape[1] if a == axis else 1 for a in range(3)])
        x = F.conv3d(F.pad(x, pad, mode="replicate"), kernel, groups=len(chosen))
    return images.index_copy(0, index, x.transpose(0, 1))


def coarsen(images: torch.Tensor, coarseness: torch.Tensor) -> torch.Tensor:
    """Images as if scanned with voxels 1, 2 or 3 times as large along every edge (B,), interpolated back; 1 leaves an image."""
    for factor in range(2, COARSEST + 1):
        chosen = torch.nonzero(coarseness == factor).flatten().to(images.device)
        if len(chosen):
            size = [max(1, round(n / factor)) for n in images.shape[2:]]
            small = F.interpolate(images[chosen], size=size, mode="area")
            images = images.index_copy(0, chosen, F.interpolate(small, size=images.shape[2:], mode="trilinear"))
    return images


def add_noise(images: torch.Tensor, deviation: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """White noise of its own seed in each image; deviation, seeds: (B,). Deviation 0 leaves an image."""
    chosen = torch.nonzero(deviation > 0).flatten()
    if len(chosen) == 0:
        return images
    generator = torch.Generator(images.device)
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator.manual_seed(seed), device=images.device)
                         for seed in seeds[chosen].tolist()])  # fmt: skip
    index = chosen.to(images.device)
    return images.index_add(0, index, (noise * _volume(deviation[chosen], images)).to(images.dtype))


def _draw_windows(strength: torch.Tensor, uniform) -> torch.Tensor:
    """Windows (B, 2) inside -1..1, NARROWEST of it wide or more at strength 1, all of it at strength 0."""
    share = 1 - strength * (1 - NARROWEST) * uniform(0, 1)  # of the width
    middle = (1 - share) * uniform(-1, 1)
    return torch.stack((middle - share, middle + share), dim=1)


def _draw_curve(batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Offsets of the knots from the identity, (B, P): rising curves for half of the samples, falling or wavy for the others."""
    steps = -torch.log(torch.rand(batch_size, REMAP_POINTS - 1, generator=generator).clamp(min=1e-3))
    rising = F.pad(steps.cumsum(dim=1), (1, 0)) / steps.sum(dim=1, keepdim=True) * 2 - 1
    wavy = 2 * torch.rand(batch_size, REMAP_POINTS, generator=generator) - 1
    curve = torch.where(torch.rand(batch_size, 1, generator=generator) < 0.5, rising, wavy)
    return curve - torch.linspace(-1, 1, REMAP_POINTS)


def _draw_convolutions(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Weights (B, out, in, 3, 3, 3) of each layer; half of the layers see one voxel only, as published."""
    widths = [1] + [GIN_CHANNELS] * (GIN_LAYERS - 1) + [1]
    layers = []
    for fan_in, fan_out in zip(widths, widths[1:]):
        weight = torch.randn(batch_size, fan_out, fan_in, 3, 3, 3, generator=generator)
        pointwise = torch.rand(batch_size, 1, 1, 1, 1, 1, generator=generator) < 0.5
        centre = torch.zeros(3, 3, 3)
        centre[1, 1, 1] = 1
        weight = torch.where(pointwise, weight * centre, weight / math.sqrt(27))
        layers.append(weight / math.sqrt(fan_in))
    return tuple(layers)


def _volume(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """One number per sample (B,), shaped and placed to act on images (B, 1, X, Y, Z)."""
    return values.to(images.device, images.dtype).view(-1, 1, 1, 1, 1)


def _mean(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=(1, 2, 3, 4), keepdim=True)


def _deviation(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).std(dim=1).view(-1, 1, 1, 1, 1)


def _energy(images: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of each image, (B, 1, 1, 1, 1)."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3, 4), keepdim=True)
