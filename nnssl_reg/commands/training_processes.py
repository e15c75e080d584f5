"""Where a training process works: its device, its number among several, and how several are started on one machine."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nnssl_reg.commands.entry import leave, mendable
from nnssl_reg.pretraining.crop_loader import leave_with_parent
from nnssl_reg.pretraining.processes import ALONE, Processes

TOGETHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
PATIENCE = timedelta(hours=1)  # that the others wait for the first one's pictures, probes and checkpoints


@dataclass(frozen=True)
class Place:
    """A process's device, and its number among those that share the run; within `with` they can speak to each other.

    meeting: where they meet, as torch.distributed has it; None for one alone.
    """

    device: torch.device
    processes: Processes = ALONE
    meeting: str | None = None

    def __enter__(self) -> "Place":
        if self.meeting is not None:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", self.meeting, PATIENCE,
                                    self.processes.size, self.processes.rank)  # fmt: skip
        return self

    def __exit__(self, error, *_) -> None:
        if self.meeting is not None and error is None:  # after an error, the others may never answer
            dist.destroy_process_group()


def working_place(args: Namespace) -> Place:
    """The place of a process alone; with -num_gpus N, of the first of N, which have not met yet."""
    if args.num_gpus < 1:
        raise ValueError(f"-num_gpus {args.num_gpus}: at least 1.")
    return Place(chosen_device(args.device, 0, args.num_gpus), Processes(0, args.num_gpus))


def torchrun_place(args: Namespace) -> Place | None:
    """The place that torchrun has given to this process, or None without torchrun."""
    told = {name: os.environ[name] for name in TOGETHER if name in os.environ}
    if len(told) < len(TOGETHER):
        return None
    if args.num_gpus != 1:
        raise ValueError(
            f"-num_gpus {args.num_gpus} under torchrun, which has started {told['WORLD_SIZE']} processes: leave it out."
        )
    device = chosen_device(args.device, int(told["LOCAL_RANK"]), int(told["LOCAL_WORLD_SIZE"]))
    size = int(told["WORLD_SIZE"])
    return Place(device, Processes(int(told["RANK"]), size), "env://") if size > 1 else Place(device)


def chosen_device(flag: str | None, number: int = 0, count: int = 1) -> torch.device:
    """The device of -device, by default a GPU if there is one, for process `number` of `count` on this machine.

    Raises ValueError if it is not there, or if there are not enough of them.
    """
    flag = flag or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(flag)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"-device {flag} cannot be used here: {str(error).splitlines()[0]}. Try -device cpu.") from error
    if count == 1:
        return device
    if device.type not in ("cpu", "cuda") or device.index is not None:
        raise ValueError(f"-device {flag} for {count} processes: give cuda, of which each takes its own, or cpu.")
    there = torch.cuda.device_count()
    if device.type == "cuda" and count > there:
        raise ValueError(f"{count} GPUs are asked for, but torch finds {there} here. Give -num_gpus {there}; "
                         "CUDA_VISIBLE_DEVICES says which ones it may see.")  # fmt: skip
    return torch.device("cuda", number) if device.type == "cuda" else device


def start_processes(work: Callable[[Namespace, Place], int], args: Namespace) -> int:
    """work(args, place) in args.num_gpus processes on this machine; the exit code of the first that ends with one.

    Signals are passed on, once to each. When one fails the others are ended, as they cannot go on without it.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="nnssl_") as folder:
        speaker = context.Lock()
        first = replace(working_place(args), meeting=f"file://{Path(folder) / 'meeting'}")
        processes = [context.Process(target=_one_of_them, args=(work, args, first, rank, speaker))
                     for rank in range(args.num_gpus)]  # fmt: skip
        for process in processes:
            process.start()

        def pass_on(number: int, _) -> None:
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return _exit_code(processes)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _exit_code(processes: list) -> int:
    """Wait for all, ending them when one fails; the exit code of the first that has one."""
    code, left = 0, list(processes)
    while left:
        multiprocessing.connection.wait([process.sentinel for process in left])
        for ended in [process for process in left if not process.is_alive()]:
            left.remove(ended)
            code = code or (ended.exitcode if ended.exitcode >= 0 else 128 - ended.exitcode)
            if ended.exitcode not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
                for process in left:
                    process.kill()
    return code


def _one_of_them(work: Callable[[Namespace, Place], int], args: Namespace, first: Place, rank: int, speaker) -> None:
    """One process: its work; what goes wrong is said by the first to find it, for the others fail because of it."""
    os.setpgrp()  # Ctrl-C reaches the starting process alone, which passes it on
    leave_with_parent()
    logging.basicConfig(format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("nnssl_reg").setLevel(logging.INFO if args.verbose else logging.WARNING)
    size = first.processes.size
    if first.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    device = torch.device("cuda", rank) if first.device.type == "cuda" else first.device
    try:
        leave(work(args, replace(first, device=device, processes=Processes(rank, size))))
    except KeyboardInterrupt:
        leave(128 + signal.SIGINT)
    except Exception as error:
        if speaker.acquire(block=False):
            line = None if args.verbose else mendable(error, "nnssl_train_dino")
            print(traceback.format_exc() if line is None else f"error: {line}", file=sys.stderr)
        leave(1)
