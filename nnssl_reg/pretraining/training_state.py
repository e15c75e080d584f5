"""A run and its state: what stays, what changes, how it starts and how it is saved."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnssl_reg.planning.plans import Configuration, PretrainingPlan
from nnssl_reg.pretraining.case_groups import CaseGroup
from nnssl_reg.pretraining.checkpoint import CheckpointInfo, read_info, restore, save_checkpoint, versions
from nnssl_reg.pretraining.crop_loader import WindowRequest
from nnssl_reg.pretraining.monitors import Health
from nnssl_reg.pretraining.optimizer import build_optimizer
from nnssl_reg.pretraining.probe import ProbeResult
from nnssl_reg.pretraining.processes import ALONE, Processes
from nnssl_reg.pretraining.recovery import Recovery, gentler
from nnssl_reg.pretraining.student_teacher import StudentTeacher
from nnssl_reg.pretraining.views import window_size


@dataclass(frozen=True)
class Run:
    """What stays the same during a run. groups: the stored cases to train on.

    processes: those that share each batch. Their number changes how fast a run is, not what it computes.
    """

    configuration: Configuration
    configuration_name: str
    dataset_name: str
    groups: tuple[CaseGroup, ...]
    seed: int
    device: torch.device
    processes: Processes = ALONE

    @property
    def window_request(self) -> WindowRequest:
        """What the loader reads."""
        plan, spacing = self.configuration.pretraining, self.configuration.image.spacing_mm
        return WindowRequest(self.groups, plan.crop_size, window_size(plan, spacing), plan.batch_size,
                             plan.foreground_share, self.seed, self.processes)  # fmt: skip

    def info(self, step: int) -> CheckpointInfo:
        """What a checkpoint after `step` steps says of itself."""
        return CheckpointInfo(step, self.seed, self.dataset_name, self.configuration_name, self.configuration.network,
                              self.configuration.pretraining, versions())  # fmt: skip


@dataclass
class TrainingState:
    """What changes: the networks, the optimiser's moments, the steps done, the last light, the recoveries so far.

    student: the pair's, such that the processes of a run share its gradients (see `spread`).
    """

    pair: StudentTeacher
    student: nn.Module = field(repr=False)
    optimizer: torch.optim.AdamW
    step: int = 0
    health: Health = Health("green")
    recoveries: tuple[Recovery, ...] = ()

    @property
    def plan(self) -> PretrainingPlan:
        """The plan that is trained with: the run's, made gentler by every recovery."""
        return self.pair.plan


def start(
    run: Run, checkpoint: Path | None = None, step: int = 0, recoveries: tuple[Recovery, ...] | None = None
) -> TrainingState:
    """Fresh networks from the seed, or those of a checkpoint after `step` steps. recoveries: None: as the checkpoint says.

    Raises ValueError where the processes of a run do not begin alike.
    """
    if recoveries is None:
        recoveries = () if checkpoint is None else read_info(checkpoint).recoveries
    network, plan = run.configuration.network, gentler(run.configuration.pretraining, len(recoveries))
    generator = torch.Generator().manual_seed(seed_of(run.seed, -1)[0])
    pair = StudentTeacher(network, plan, generator, run.processes).to(run.device)
    optimizer = build_optimizer(pair.student, network.depth, plan.layer_decay)
    if checkpoint is not None:
        restore(checkpoint, pair, optimizer)
    moments = [value for moments in optimizer.state.values() for value in moments.values()]
    run.processes.require_same([*pair.state_dict().values(), *moments, torch.tensor(step), torch.tensor(len(recoveries))])
    return TrainingState(pair, spread(pair, optimizer, run.device), optimizer, step, recoveries=recoveries)


def spread(pair: StudentTeacher, optimizer: torch.optim.Optimizer, device: torch.device) -> nn.Module:
    """The student to call in training; the one place that decides what several processes share besides the batch.

    Its gradients, or with plan.sharded all that belongs to the weights. A process alone has all of it.
    """
    if pair.processes.size > 1 and pair.plan.sharded:
        from nnssl_reg.pretraining import sharding  # here, because torch has it since 2.6 only, and it takes a while to load

        return sharding.shard(pair, optimizer, device)
    return pair.processes.shared(pair.student)


def save(run: Run, state: TrainingState, folder: Path, name: str, probe: ProbeResult | None = None,
         keep_previous: bool = True) -> None:  # fmt: skip
    """Write a checkpoint of the state. All processes of a run come here; the first one writes."""
    info = replace(run.info(state.step), light=state.health.light, recoveries=state.recoveries)
    if probe is not None:
        info = replace(info, probe_recall=probe.recall, probe_error_mm=probe.error_mm)
    save_checkpoint(folder, name, info, state.pair, state.optimizer, keep_previous)


def seed_of(seed: int, step: int, attempt: int = 0) -> tuple[int, int]:
    """Two seeds of a step, for parameters and for the device; step -1 is the start; attempt: the recoveries before it."""
    entropy = [seed, step + 1, attempt] if attempt else [seed, step + 1]
    first, second = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
    return int(first >> 1), int(second >> 1)  # torch takes 63 bits everywhere
