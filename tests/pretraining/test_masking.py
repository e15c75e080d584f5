"""Masks cover what is asked, in blocks; chosen tokens are weighted per image."""

import pytest
import torch

from nnssl_reg.pretraining.masking import block_mask, choose_tokens


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.55, 0.7])
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 5, 12), (16, 16, 2)])
def test_each_sample_is_masked_by_exactly_the_asked_share(ratio, shape):
    total = shape[0] * shape[1] * shape[2]
    mask = block_mask(5, shape, ratio, generator(1))
    assert mask.shape == (5, *shape) and mask.dtype == torch.bool
    assert mask.flatten(1).sum(dim=1).tolist() == [round(ratio * total)] * 5


def test_masks_are_blocks_not_single_tokens():
    masks = torch.cat([block_mask(4, (16, 16, 16), 0.4, generator(seed)) for seed in range(16)]).float()
    neighbours = [(masks.narrow(a, 0, 15) * masks.narrow(a, 1, 15)).mean() / masks.mean() for a in (1, 2, 3)]
    assert min(neighbours) > 0.55  # of a masked token's neighbours are masked; scattered tokens would have 0.4


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 3), (6, 6, 1)])
def test_grids_of_few_tokens_are_masked_too(shape):
    total = shape[0] * shape[1] * shape[2]
    assert int(block_mask(1, shape, 0.5, generator()).sum()) == round(0.5 * total)


def test_samples_have_different_masks_and_all_places_are_masked_about_as_often():
    mask = block_mask(400, (6, 6, 6), 0.5, generator(3)).float()
    assert not torch.equal(mask[0], mask[1])
    often = mask.mean(dim=0)
    assert often.min() > 0.35 and often.max() < 0.65


def test_all_candidates_are_chosen_when_there_are_few_and_weighted_per_image():
    candidates = torch.zeros(3, 10, dtype=torch.bool)
    candidates[0, [1, 4]] = True
    candidates[2, [0, 3, 5, 9]] = True
    index, weights = choose_tokens(candidates, 100, generator())
    found = {int(i): float(w) for i, w in zip(index, weights)}
    # a mean over each image's tokens, then over the two images that have any
    assert found == pytest.approx({1: 1 / 4, 4: 1 / 4, 20: 1 / 8, 23: 1 / 8, 25: 1 / 8, 29: 1 / 8})


def test_at_most_the_limit_is_chosen_from_each_sample_and_only_candidates():
    candidates = torch.rand(4, 50, generator=generator(1)) < 0.6
    index, weights = choose_tokens(candidates, 7, generator(2))
    assert candidates.flatten()[index].all()
    assert torch.bincount(index // 50, minlength=4).tolist() == [7] * 4
    assert len(set(index.tolist())) == 28
    assert float(weights.sum()) == pytest.approx(1)


def test_no_candidates_give_no_tokens():
    index, weights = choose_tokens(torch.zeros(2, 5, dtype=torch.bool), 3, generator())
    assert len(index) == len(weights) == 0
