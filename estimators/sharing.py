"""What processes that train together tell each other; of one process alone, what it has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, distributed, nn


def rank_and_world() -> tuple[int, int]:
    """Which of how many processes this is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def summed(values: Tensor) -> Tensor:
    """Sums over processes."""
    if rank_and_world()[1] > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def gathered(value: float) -> list[float]:
    """The number of every process."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    found: list[float] = [0.0] * world
    distributed.all_gather_object(found, value)
    return found


def own_share(values: Sequence[float]) -> float:
    """This process's of what `gathered` gave; of as many processes as there were, or the first gets it all."""
    rank, world = rank_and_world()
    if len(values) == world:
        return values[rank]
    return 0.0 if rank else sum(values)


def share_statistics(module: nn.Module) -> None:
    """Make running statistics of batch normalisation, which each process takes of its own rows, those of all."""
    world = rank_and_world()[1]
    for layer in module.modules() if world > 1 else ():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None:
            for values in (layer.running_mean, layer.running_var):
                assert values is not None
                values.copy_(summed(values) / world)


def share_means(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over processes."""
    world = rank_and_world()[1]
    for tensor in tensors if world > 1 else ():
        distributed.all_reduce(tensor)
        tensor.div_(world)
