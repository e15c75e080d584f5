"""The local part of ConvexAdam: Adam on a smooth displacement field, feature difference plus diffusion regulariser."""

import torch

from nnssl_reg.registration.coupled_convex import all_within
from nnssl_reg.registration.kernels_torch import moving_position


def optimise(fixed, moving, matrix, field, weights, iterations, learning_rate, smoothing_passes, kernels,
             masks=(None, None)) -> torch.Tensor:  # fmt: skip
    """Refine a field (X, Y, Z, 3) in fixed cells.

    Minimises over p: mean |moving(x + u(x)) - fixed(x)|^2 + mean over cells and components of weights[a, c] |du_c/da|^2, where
    u is p smoothed by box filters. fixed (X, Y, Z, C), moving (X', Y', Z', C), matrix (3, 4): fixed cell -> moving cell.
    masks: where fixed and moving cells count (bool, or None: everywhere); elsewhere only the regulariser acts.
    """
    parameter = field.clone(memory_format=torch.contiguous_format)
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    cells = fixed.shape[0] * fixed.shape[1] * fixed.shape[2]
    for step in range(1, iterations + 1):
        smooth = kernels.smooth(parameter, smoothing_passes)
        _, gradient = kernels.warp_cost(fixed, moving, smooth, matrix)
        if masks[0] is not None:
            gradient *= masks[0][..., None]
        if masks[1] is not None:
            gradient *= all_within(masks[1], moving_position(smooth, matrix))[..., None]
        kernels.add_diffusion_gradient(smooth, weights / 3, gradient)  # 3: the regulariser is a mean over components too
        gradient = kernels.smooth(gradient, smoothing_passes).div_(cells)  # the box filters are their own adjoint
        kernels.adam_step(parameter, gradient, first, second, learning_rate, step)
    return kernels.smooth(parameter, smoothing_passes)
