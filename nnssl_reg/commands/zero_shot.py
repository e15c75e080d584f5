"""Zero-shot Dice while training: labelled pairs registered with the network as it stands; labels only judge."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnssl_reg.commands.pair_features import Model
from nnssl_reg.commands.pair_reader import check_names, read_pair
from nnssl_reg.commands.register_pair import deform_pair
from nnssl_reg.commands.registration_setup import make_setup
from nnssl_reg.commands.tuning_pairs import TuningPair
from nnssl_reg.evaluation.tuning_score import judged, label_truth
from nnssl_reg.imageio.pairs import read_pairs
from nnssl_reg.registration.affine_init import InitialAlignment

PAIRS = 4  # the first labelled ones; a probe should take seconds


class ZeroShotDice:
    """Calls with an encoder return the mean Dice of the first labelled pairs of a file, registered with its features alone.

    path: pairs as nnssl_register takes them; model: the plans' settings, on the encoder's device. Raises ValueError or OSError
    for pairs that cannot be used.
    """

    def __init__(self, path: str | Path, model: Model, device: torch.device):
        self._model, self._device = model, device
        self._alignments: dict[str, InitialAlignment] = {}  # by MIND, so no encoder changes them
        labelled = [pair for pair in read_pairs(path) if pair.fixed_label is not None and pair.moving_label is not None]
        if not labelled:
            raise ValueError(f"{path}: no pair has labels of both images (fixed_label, moving_label), so there is no Dice.")
        self._items, store, checked = [], self._setup(model.encoder).store(), set()
        for pair in labelled[:PAIRS]:
            images = read_pair(pair, store)
            check_names(images, checked)
            truth = label_truth(images.fixed.label, images.moving.label, None)
            if truth is None:
                raise ValueError(f"{path}: the two images of {pair.id} have no label in common.")
            self._items.append(TuningPair(pair, truth))

    def __call__(self, encoder: nn.Module) -> float:
        setup = self._setup(encoder)
        store = setup.store()
        return float(np.mean([self._dice(item, store, setup.registration) for item in self._items]))

    def _setup(self, encoder: nn.Module):
        return make_setup([], self._device, kind="dino", model=replace(self._model, network=encoder))

    def _dice(self, item: TuningPair, store, plan) -> float:
        found = deform_pair(read_pair(item.bare, store), store, plan, self._alignments.get(item.pair.id))
        self._alignments[item.pair.id] = found.alignment
        return judged(item.truth, found.alignment.transform, found.deformation).value
