"""The local part of ConvexAdam: Adam on a smooth displacement field, feature difference plus diffusion regulariser."""

import torch

from nnssl_reg.registration.cells import Cells


def optimise(fixed: Cells, moving: Cells, matrix, field, weights, iterations, learning_rate, smoothing_passes, kernels):
    """Refine a field (3, X, Y, Z) in fixed cells.

    Minimises over p: mean |moving(x + u(x)) - fixed(x)|^2 + mean over cells and components of weights[a, c] |du_c/da|^2, where
    u is p smoothed by box filters; cells outside a mask have no say in the first mean. matrix (3, 4): fixed cell -> moving
    cell. Adam takes the same steps of a sum as of a mean, so the sums are what is computed.
    """
    parameter = field.clone(memory_format=torch.contiguous_format)
    moments = torch.zeros(2, *parameter.shape, device=field.device)
    # the same memory in all steps: fresh pages of a large field cost a quarter of the time
    smooth, gradient = torch.empty_like(parameter), torch.empty_like(parameter)
    weights = weights / 3  # the regulariser is a mean over components too

    def take(step) -> None:
        kernels.smooth(parameter, smoothing_passes, smooth, gradient)
        kernels.energy_gradient(fixed, moving, smooth, matrix, weights, gradient)
        # the box filters are their own adjoint
        kernels.smooth_adam_step(parameter, gradient, moments, smoothing_passes, learning_rate, step, smooth)

    kernels.repeat(take, iterations, field.device)
    return kernels.smooth(parameter, smoothing_passes, smooth, gradient)
