"""Which right-angled turns of the moving patient look likelier than none: headers may be wrong, patients may lie otherwise."""

from collections.abc import Callable, Sequence

import numpy as np

from nnssl_reg.geometry.image import FeatureMap
from nnssl_reg.registration.shift_search import likely_shifts
from nnssl_reg.registration.structure import NO_OVERLAP_COST, alignment_cost, in_cells, structure

CELLS = 14  # along the fixed image's longest edge
PEAKS = 2  # shifts of each turn


def likelier_turns(fixed: FeatureMap, moving: FeatureMap, turns: Sequence, turned: Callable) -> list[tuple]:
    """Those of `turns`, the first of which does nothing, that resemble the fixed image more than that at their best shift.

    Each with by how much its alignment_cost there is lower, the likeliest first. fixed, moving: MIND; turned: features and a
    turn -> the features of the image so turned.
    """
    cell_mm = max(*fixed.grid.extent_mm, max(moving.grid.extent_mm) / 2) / CELLS  # a moving atlas may be much larger
    here, averaged = structure(in_cells(fixed, cell_mm)), in_cells(moving, cell_mm)
    there = {i: (structure(turned(averaged, turn)), 1.0) for i, turn in enumerate(turns)}
    shifts = likely_shifts(here, there, max(here.grid.spacing_mm), PEAKS)
    costs = [min([alignment_cost(here, there[i][0], shift) for shift in found], default=NO_OVERLAP_COST)
             for i, found in shifts.items()]  # fmt: skip
    return [(turns[i], costs[0] - costs[i]) for i in np.argsort(costs, kind="stable") if costs[i] < costs[0]]
