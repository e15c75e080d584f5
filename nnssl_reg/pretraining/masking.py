"""Block masks over the token grid that cover exactly the share asked for, and the choice of tokens that enter a loss."""

import torch

from nnssl_reg.pretraining.processes import ALONE, Processes

LARGEST_BLOCK = 4  # tokens along an edge
BLOCKS_PER_AXIS = 4  # at least, along the shortest axis of the grid: larger blocks hide whole organs of a small crop


def block_mask(batch_size: int, grid_shape: tuple[int, int, int], ratio: float, generator: torch.Generator) -> torch.Tensor:
    """Masks (B, X', Y', Z') bool with round(ratio * N) true tokens in each sample, in cubes of a random edge; on the CPU.

    The edge is one to LARGEST_BLOCK tokens, fewer on small grids. Cubes of a random lattice are filled in random order; only
    the last one is filled in part.
    """
    largest = max(2, min(LARGEST_BLOCK, min(grid_shape) // BLOCKS_PER_AXIS))
    edge = int(torch.randint(1, largest + 1, (1,), generator=generator))
    offsets = torch.randint(edge, (batch_size, 3), generator=generator)
    cells = [-(-n // edge) + 1 for n in grid_shape]
    order = torch.rand(batch_size, *cells, generator=generator)
    sample = torch.arange(batch_size).view(-1, 1, 1, 1)
    index = [((torch.arange(n) + offsets[:, a : a + 1]) // edge).view(batch_size, *[-1 if a == b else 1 for b in range(3)])
             for a, n in enumerate(grid_shape)]  # fmt: skip
    rank = order[sample, index[0], index[1], index[2]].flatten(1)  # (B, N)
    rank = rank + 1e-4 * torch.rand(rank.shape, generator=generator)  # which tokens of the last, partial cube
    count = round(ratio * rank.shape[1])
    mask = torch.zeros(rank.shape, dtype=torch.bool)
    mask.scatter_(1, rank.argsort(dim=1)[:, :count], True)
    return mask.view(batch_size, *grid_shape)


def choose_tokens(candidates: torch.Tensor, limit: int, generator: torch.Generator,
                  processes: Processes = ALONE) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """At most `limit` random candidates of each sample: flat indices (M,) into (B * N) and their weights (M,).

    candidates: (B, N) bool; generator: on their device. The weighted sum over the tokens is a mean over each sample's tokens,
    then over the samples that have any. processes: the candidates are those of the whole batch, chosen are the own samples'.
    """
    device = candidates.device
    scores = torch.rand(candidates.shape, generator=generator, device=device).masked_fill(~candidates, 2.0)
    order = scores.argsort(dim=1)[:, :limit]  # (B, limit)
    kept = candidates.gather(1, order)
    counts = kept.sum(dim=1, keepdim=True)
    samples = (counts > 0).sum().clamp(min=1)
    weights = kept / (counts.clamp(min=1) * samples)
    order, kept, weights = (processes.own(rows) for rows in (order, kept, weights))
    index = order + candidates.shape[1] * torch.arange(len(order), device=device)[:, None]
    return index[kept], weights[kept]
