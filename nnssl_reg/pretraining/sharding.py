"""Sharding: a pair whose weights, gradients, moments and teacher several processes hold in shares (FSDP)."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from nnssl_reg.pretraining.student_teacher import StudentTeacher


def shard(pair: StudentTeacher, optimizer: torch.optim.Optimizer, device: torch.device) -> nn.Module:
    """Leave each process its share of a pair and of the optimiser's moments, which all hold alike; returns the student.

    Every tensor is cut along its first axis. The student gathers one block at a time, forward and backward, and leaves the
    mean of all processes' gradients. Teacher and anchor are gathered as a whole, by `assembled`, while they are asked.
    """
    mesh = init_device_mesh(device.type, (pair.processes.size,))
    before = dict(pair.student.named_parameters())
    anchors = [pair.anchor_encoder] if pair.plan.gram_weight > 0 else []
    # the encoder itself is no unit of the student: its Tokens hide from FSDP whose backward pass begins
    for module in (*pair.student.encoder.eva.blocks, pair.student, pair.teacher, *anchors):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    share_of = {before[name]: share for name, share in pair.student.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [share_of[parameter] for parameter in group["params"]]
    for parameter, share in share_of.items():
        moments = optimizer.state.pop(parameter, {})
        for key, value in moments.items():  # all but the count of steps have the parameter's shape
            optimizer.state[share][key] = distribute_tensor(value, mesh, share.placements) if value.ndim else value
    return pair.student
