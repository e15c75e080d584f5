"""Groups of stored cases that are seen equally often, and which case a sample of the run is cut from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

BLOCK = 200  # samples within which every group has its share


@dataclass(frozen=True)
class CaseGroup:
    """Cases of one folder. share: of the samples, relative to the other groups'; modality: of all of them, if it is one."""

    folder: Path
    names: tuple[str, ...]
    share: float = 1.0
    modality: str = ""


def case_of(groups: Sequence[CaseGroup], sample: int, seed: int) -> tuple[Path, int, CaseGroup]:
    """The case of a sample, counted from the run's first: folder / name, its place in the group's names, the group.

    Groups in random order but with their exact share of every BLOCK samples, at least one; within a group all cases in turn,
    in a new order for every turn. A pure function of its arguments, so that a run can begin anywhere.
    """
    number, place = (0, sample) if len(groups) == 1 else _place(tuple(group.share for group in groups), sample, seed)
    group = groups[number]
    turn, at = divmod(place, len(group.names))
    index = int(_order(len(group.names), (seed, 1, turn, *([number] if number else ())))[at])
    return group.folder / group.names[index], index, group


def slots(shares: Sequence[float]) -> list[int]:
    """How many of BLOCK samples each group has: the nearest whole numbers that add up, at least one."""
    exact = np.array(shares) / sum(shares) * BLOCK
    counts = np.maximum(1, np.floor(exact)).astype(int)
    while counts.sum() != BLOCK:
        step = 1 if counts.sum() < BLOCK else -1
        lacking = np.where(counts + step >= 1, step * (exact - counts), -np.inf)
        counts[int(lacking.argmax())] += step
    return counts.tolist()


def balanced_shares(sizes: dict[tuple[str, str], int], balance: float, weights: dict[str, float] | None = None
                    ) -> dict[tuple[str, str], float]:  # fmt: skip
    """Shares of groups, from their numbers of cases by (data set, modality); they add up to 1.

    balance: 0 gives every case the same chance, 1 every modality; between, a modality of n cases has n^(1 - balance).
    weights: of the data sets, None: they get what their cases bring. Within a modality all cases are alike.
    """
    if weights is None:
        return _balanced(sizes, balance)
    total = sum(weights[dataset] for dataset in {dataset for dataset, _ in sizes})
    found = {}
    for dataset in dict.fromkeys(dataset for dataset, _ in sizes):
        own = {key: count for key, count in sizes.items() if key[0] == dataset}
        found |= {key: share * weights[dataset] / total for key, share in _balanced(own, balance).items()}
    return found


def _balanced(sizes: dict[tuple[str, str], int], balance: float) -> dict[tuple[str, str], float]:
    of_modality: dict[str, int] = {}
    for (_, modality), count in sizes.items():
        of_modality[modality] = of_modality.get(modality, 0) + count
    total = sum(count ** (1 - balance) for count in of_modality.values())
    return {key: of_modality[key[1]] ** (1 - balance) / total * count / of_modality[key[1]] for key, count in sizes.items()}


@lru_cache(maxsize=4)
def _block(counts: tuple[int, ...], seed: int, block: int) -> np.ndarray:
    """The group of each sample of a block."""
    return np.random.default_rng([seed, 5, block]).permutation(np.repeat(np.arange(len(counts)), counts))


def _place(shares: tuple[float, ...], sample: int, seed: int) -> tuple[int, int]:
    """The group of a sample, and how many samples that group had before."""
    counts = tuple(slots(shares))
    block, at = divmod(sample, BLOCK)
    order = _block(counts, seed, block)
    number = int(order[at])
    return number, block * counts[number] + int((order[:at] == number).sum())


@lru_cache(maxsize=64)
def _order(count: int, entropy: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(list(entropy)).permutation(count)
