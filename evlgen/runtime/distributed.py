"""Several processes that train one run together: their ranks, and how they exchange data.

Data parallelism in its plainest form. Each rank computes its share of the joint loss on its share of the
joint batch, and `Ranks.sum_gradients` adds the gradients up, all of them in one buffer in a fixed order.
torch's ``DistributedDataParallel`` is not used for two reasons: it averages over ranks, where a mean over the
text tokens of the joint batch is needed, and it regroups its buckets after the first step of a process, so
that a resumed run adds in another order and ends with other bits. What it would hide, sending the gradient of
a connector (110M numbers) while the rest is computed, is below a hundredth of a step of the paper.

A process without others pays nothing for any of this.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evlgen.errors import UserError

log = logging.getLogger(__name__)

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = datetime.timedelta(days=2)  # with what rank 0 does alone: validation, checkpoints


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one run together.

    Attributes:
        index: from 0; rank 0 writes the files.
        size: number of processes.
        waiting: a CPU process group with a longer time-out than NCCL's; None for a process alone.
    """

    index: int = 0
    size: int = 1
    waiting: Any = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank; ranks that arrive early wait, for days if need be."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.waiting)
        return values[0]

    def sum(self, x: Tensor) -> Tensor:
        """Sum over all ranks, without gradient; ``x`` itself holds it afterwards."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def totals(self, *numbers: int) -> list[int]:
        """Sums of numbers over all ranks. CPUs exchange them: no GPU is waited for."""
        return list(numbers) if self.size == 1 else self._agree(numbers, dist.ReduceOp.SUM)

    def _agree(self, numbers: Sequence[int], operation: Any) -> list[int]:
        agreed = torch.tensor(numbers)
        dist.all_reduce(agreed, operation, group=self.waiting)
        found: list[int] = agreed.tolist()
        return found

    def gather(self, x: Tensor) -> Tensor:
        """(B, ...) of each rank -> (size * B, ...) in the order of ranks; gradients go back to their owners.

        The backward pass sums the gradients of all ranks' losses. All ranks must pass the same shape.
        """
        if self.size == 1:
            return x
        gathered: Tensor = _Gather.apply(x, self.index, self.size)
        return gathered

    def gather_padded(self, x: Tensor) -> Tensor:
        """(B, T) of each rank, T its own -> (size * B, T of the longest), padded with zeros behind."""
        if self.size == 1:
            return x
        (longest,) = self._agree([x.shape[1]], dist.ReduceOp.MAX)
        return self.gather(nn.functional.pad(x, (0, longest - x.shape[1])))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(joined)
        pieces = joined.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    @torch.no_grad()
    def copy_from_first(self, module: nn.Module) -> None:
        """Copy rank 0's weights and buffers into the module: other machines may have initialised others."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


ALONE = Ranks()


class _Gather(torch.autograd.Function):
    """Differentiable all-gather.

    torch's own is not stable: `torch.distributed.nn.functional.all_gather` (the same gradients in our tests)
    is deprecated and warns at each call, and what is to replace it is in a private module, under names that
    changed between the releases that we support.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: int, size: int) -> Tensor:
        ctx.index, ctx.size = index, size
        gathered = x.new_empty(size * len(x), *x.shape[1:])
        dist.all_gather(list(gathered.chunk(size)), x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # reduce-scatter would do, but older gloo has none
        return total.chunk(ctx.size)[ctx.index], None, None


def init_from_environment() -> bool:
    """Join the process group that the environment describes, as ``torchrun`` and submitit set it.

    NCCL where there are GPUs (this process takes the one numbered ``LOCAL_RANK``), gloo otherwise. Without
    ``WORLD_SIZE``, or with 1, the process stays alone. `close` ends it.

    Returns:
        whether there are others.

    Raises:
        UserError: a variable is missing or no number, or there are more processes than GPUs on this machine.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set but {', '.join(missing)} not: start with torchrun, or export submitit's "
            "TorchDistributedEnvironment"
        )
    try:
        rank, size, local = (int(os.environ[name]) for name in _VARIABLES[:3])
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK: must be whole numbers ({error})") from None
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank}: must be from 0 to WORLD_SIZE - 1 = {size - 1}")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK is {local}, but this process sees {torch.cuda.device_count()} GPUs: "
                "start as many processes on a machine as it has GPUs"
            )
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", device_id=torch.device("cuda", local))
    else:
        dist.init_process_group("gloo")
    log.info("rank %d of %d, %s", rank, size, dist.get_backend())
    return True


def close() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of the process group that is open, or a process alone. All ranks must enter together."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield ALONE
        return
    waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield Ranks(dist.get_rank(), dist.get_world_size(), waiting)
    dist.destroy_process_group(waiting)  # not after an error: the others may not come


# --------------------------------------------------------------------------------- memory of the frozen LLM


def shard(llm: Any, ranks: Ranks, device: torch.device) -> None:
    """Spread the layers of a frozen language model over the ranks (FSDP2); in place.

    Each rank keeps 1 / size of every layer and fetches the rest of a layer just before it is used, forward
    and backward. Word embeddings and output layer stay whole, since they are used outside of the layers.
    From then on all ranks must run the model together.

    Args:
        llm: a transformers model, on the CPU as it was read: only one layer at a time is whole on the device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))
    layers = transformer_layers(llm)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    sharded = {id(p) for layer in layers for p in layer.parameters()}
    whole = {p for p in llm.base_model.parameters() if id(p) not in sharded}
    fully_shard(llm.base_model, mesh=mesh, ignored_params=whole)  # the root, which fetches ahead
    llm.to(device)


def transformer_layers(llm: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, whatever its architecture."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
