"""What a run is trained on: the preprocessed cases of one or several data sets, by modality, and those kept for the probe."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from nnssl_reg.commands.held_out import split
from nnssl_reg.commands.preprocess import image_plan_fingerprint, read_plans
from nnssl_reg.imageio.case_store import case_names, read_properties
from nnssl_reg.imageio.raw_dataset import split_channel
from nnssl_reg.planning.plans import Configuration, Plans
from nnssl_reg.pretraining.case_groups import CaseGroup, balanced_shares

ALIKE = 0.05  # relative difference of token shapes that may be mixed
log = logging.getLogger("nnssl_reg")


@dataclass(frozen=True)
class StoredDataset:
    """One data set's preprocessed cases for a configuration: those to train on by modality, and those to probe."""

    name: str
    folder: Path
    configuration: Configuration
    trained: dict[str, tuple[str, ...]]
    probed: tuple[str, ...]


@dataclass(frozen=True)
class TrainingData:
    """All data sets of a run. plans: the first one's, with the channels of all."""

    datasets: tuple[StoredDataset, ...]
    plans: Plans

    @property
    def name(self) -> str:
        """The first data set's name, and the numbers of the others: Dataset001_Abdomen+002+005."""
        return "+".join([self.datasets[0].name, *(d.name.split("_")[0].removeprefix("Dataset") for d in self.datasets[1:])])

    @property
    def probed(self) -> tuple[Path, ...]:
        """The cases to probe (folder / name), one of each data set in turn."""
        rows = zip_longest(*[[dataset.folder / name for name in dataset.probed] for dataset in self.datasets])
        return tuple(case for case in chain.from_iterable(rows) if case is not None)

    def groups(self, balance: float, weights: Sequence[float] | None) -> tuple[CaseGroup, ...]:
        """The cases to train on, with their shares. weights: of the data sets, in their order."""
        if len(self.datasets) == 1 and balance == 0:  # as runs of plans without modality_balance began
            (dataset,) = self.datasets
            return (CaseGroup(dataset.folder, tuple(sorted(chain.from_iterable(dataset.trained.values())))),)
        names = {(dataset.name, modality): dataset for dataset in self.datasets for modality in dataset.trained}
        sizes = {key: len(dataset.trained[key[1]]) for key, dataset in names.items()}
        weighted = None if weights is None else {d.name: w for d, w in zip(self.datasets, weights, strict=True)}
        shares = balanced_shares(sizes, balance, weighted)
        return tuple(CaseGroup(d.folder, d.trained[key[1]], shares[key], key[1]) for key, d in names.items())


def read_training_data(roots: Sequence[Path], plans_name: str, configuration_name: str) -> TrainingData:
    """The data sets in these preprocessed folders. Raises ValueError for what is missing, outdated or does not fit together."""
    all_plans = [read_plans(root, plans_name) for root in roots]
    for root, plans in zip(roots, all_plans):
        if configuration_name not in plans.configurations:
            raise ValueError(f"{root / plans.plans_name}.json has no configuration {configuration_name!r}, but "
                             f"{', '.join(plans.configurations)}.")  # fmt: skip
    datasets = [_stored(root, plans, configuration_name) for root, plans in zip(roots, all_plans)]
    first = datasets[0].configuration
    for dataset in datasets[1:]:
        _require_alike(datasets[0], dataset)
        first = replace(first, image=replace(first.image, channels=_joined(first, dataset.configuration)))
    configurations = {**all_plans[0].configurations, configuration_name: first}
    return TrainingData(tuple(datasets), replace(all_plans[0], configurations=configurations))


def _stored(root: Path, plans: Plans, configuration_name: str) -> StoredDataset:
    configuration, folder = plans.configurations[configuration_name], root / f"{plans.plans_name}_{configuration_name}"
    names = usable_cases(folder, configuration)
    trained, probed = split(names)
    by_modality: dict[str, list[str]] = {}
    for name in trained:
        channel = configuration.image.channels.get(split_channel(name)[1])  # from the name: no file is opened for it
        by_modality.setdefault("other" if channel is None else channel.name, []).append(name)
    return StoredDataset(root.name, folder, configuration, {m: tuple(n) for m, n in by_modality.items()}, probed)


def usable_cases(folder: Path, configuration: Configuration) -> list[str]:
    """The stored cases. Raises ValueError if there are none or if they were made by other plans.

    The first and the last that can be read are asked: with thousands of cases, opening all would take minutes.
    """
    names = case_names(folder)
    if not names:
        raise ValueError(f"{folder} holds no preprocessed case; run nnssl_preprocess -d {folder.parent.name}.")
    for order in (names, names[::-1]):
        properties = _first_readable(folder, order)
        if properties.plans_fingerprint != image_plan_fingerprint(configuration, properties.channel):
            raise ValueError(f"{folder / properties.name}.b2nd was preprocessed by other plans than those there are now; run "
                             f"nnssl_preprocess -d {folder.parent.name} again (what still fits is kept).")  # fmt: skip
    return names


def _first_readable(folder: Path, names: Sequence[str]):
    problem = None
    for name in names:
        try:
            return read_properties(folder, name)
        except (ValueError, OSError) as error:
            problem = error
    raise ValueError(f"None of the {len(names)} cases in {folder} can be read, the last because {problem} Run "
                     f"nnssl_preprocess -d {folder.parent.name} again; it makes them anew.")  # fmt: skip


def _require_alike(first: StoredDataset, other: StoredDataset) -> None:
    """Tokens must have one shape: the network has one patch, and crops are turned in millimetres."""
    patches = [dataset.configuration.network.patch_size for dataset in (first, other)]
    spacings = [np.array(dataset.configuration.image.spacing_mm) for dataset in (first, other)]
    ratio = spacings[0] / spacings[1]
    if patches[0] != patches[1] or ratio.max() / ratio.min() > 1 + ALIKE:
        (a, b), (p, q) = ([" x ".join(f"{v:g}" for v in values) for values in pair] for pair in (spacings, patches))
        raise ValueError(f"{first.name} is stored at {a} mm for tokens of {p} voxels, {other.name} at {b} mm for {q}: they "
                         "cannot be mixed. Plan them alike, e.g. with nnssl_plan_and_preprocess -overwrite_target_spacing "
                         "2 2 2 -overwrite_plans_name joint, and train with -p joint.")  # fmt: skip


def _joined(first: Configuration, other: Configuration) -> dict:
    """The channels of both, by name: a registration looks up there how an image is normalised."""
    channels = dict(first.image.channels)
    for channel in other.image.channels.values():
        if channel.name.lower() not in {known.name.lower() for known in channels.values()}:
            channels[str(max(map(int, channels), default=-1) + 1)] = channel
    return channels
