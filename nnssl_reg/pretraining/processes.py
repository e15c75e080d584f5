"""Processes: those that share the crops of a step, and the sums and rows that they need of each other."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Rows = TypeVar("Rows", torch.Tensor, Sequence)


@dataclass(frozen=True)
class Processes:
    """Process `rank` of `size`, of torch's default process group where there are several.

    A batch is dealt out like cards: process r has the samples r, r + size, r + 2 size, ... Several processes together
    compute what one would with the whole batch: values are those of the whole batch, gradients are each process's share.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def own(self, rows: Rows) -> Rows:
        """This process's rows of those of the whole batch."""
        return rows if self.size == 1 else rows[self.rank :: self.size]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, without a gradient."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The largest over all processes, element by element, without a gradient."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def any(self, claim: bool, device: torch.device) -> bool:
        """Whether it is true in any process."""
        return claim if self.size == 1 else bool(self.largest(torch.tensor(float(claim), device=device)))

    def joined(self, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each process's summands -> their sums over all, through which the gradient reaches this process's summand."""
        if self.size == 1:
            return terms
        own = torch.stack(list(terms.values()))
        return dict(zip(terms, own + (self.total(own) - own.detach())))

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows (n, ...) of all processes, n may differ, one process after the other; gradients reach the own ones only."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.long, device=rows.device)
        counts[self.rank] = len(rows)
        counts = self.total(counts).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([rows if r == self.rank else part[:n] for r, (part, n) in enumerate(zip(parts, counts))])

    def wait(self, device: torch.device) -> None:
        """Until all processes have come here."""
        self.total(torch.zeros((), device=device)).item()  # a GPU only notes the sum down until it is asked for

    def shared(self, module: nn.Module) -> nn.Module:
        """A module whose backward pass leaves the mean of all processes' gradients in its parameters."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def require_same(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raises ValueError where the processes hold other numbers."""
        if self.size == 1:
            return
        sums = torch.stack([tensor.double().sum().to(tensors[0].device) for tensor in tensors])
        if not torch.allclose(self.largest(sums), -self.largest(-sums), rtol=1e-9, atol=1e-9):  # GPUs may differ in rounding
            raise ValueError("The processes of this run have begun with different weights. Do all nodes see the same "
                             "nnssl_results and have the same versions installed?")  # fmt: skip

    def _reduced(self, values: torch.Tensor, operation) -> torch.Tensor:
        reduced = values.detach()
        if self.size > 1:
            reduced = reduced.clone()
            dist.all_reduce(reduced, operation)
        return reduced


ALONE = Processes()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor; one that the processes hold in shares (a DTensor) is put together by all of them."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextlib.contextmanager
def assembled(module: nn.Module) -> Iterator[None]:
    """Within, each process has the weights of a module whole that all hold in shares; a module that is whole stays so.

    All processes enter, but what each does with the module is its own affair.
    """
    if not hasattr(module, "unshard"):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
