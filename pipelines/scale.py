"""What `scale.workers: auto` and `scale.gpus_per_worker: auto` come to, and what the machine has that is not used."""

from vergence.pipelines.recipe import Recipe
from vergence.platform.cluster import session
from vergence.platform.cluster.capacity import Found, Need, ScaleConfig, found_here, settle


def found_for(recipe: Recipe) -> Found:
    """What a run of this recipe would find: on this machine, or on the nodes of the Ray session that it joins."""
    if session.place() == "own":
        return found_here()
    if not recipe.scale.is_open:
        return Found(0, 0)  # a cluster is asked only where the recipe leaves something to it
    with session.opened(Need(ScaleConfig(), 1, recipe.data.reader_cpus)):
        nodes = session.nodes()
    return Found(int(sum(node.cpus for node in nodes)), int(sum(node.gpus for node in nodes)))


def with_scale(recipe: Recipe, found: Found) -> Recipe:
    """The recipe with numbers in its `scale` section."""
    if not recipe.scale.is_open:
        return recipe
    return recipe.model_copy(
        update={"scale": settle(recipe.scale, found, lambda workers: divides(recipe, workers))}
    )


def divides(recipe: Recipe, workers: int) -> bool:
    """Whether so many workers can share the global batch and its norm groups."""
    share, rest = divmod(recipe.batch.global_batch, workers)
    if rest or share % (recipe.batch.micro or share):
        return False
    group = recipe.norm.for_method(False).group
    return not isinstance(group, int) or share % group == 0 or group % share == 0


def told(found: Found, scale: ScaleConfig) -> str:
    """What was found on this machine, and what of it is not used, in a line."""
    used = min(found.gpus, scale.workers * scale.gpus_per_worker)
    if found.unusable_gpus:
        return (
            f"{_gpus(found.unusable_gpus)} of the driver, but this torch is a build without CUDA and cannot use "
            f"{'it' if found.unusable_gpus == 1 else 'them'}: install one with CUDA; {found.cpus} CPUs"
        )
    if not found.gpus:
        return f"no GPU; {found.cpus} CPUs"
    if not used:
        return (
            f"{_gpus(found.gpus)}, not used: scale.gpus_per_worker={scale.gpus_per_worker} with "
            f"{scale.workers} workers; scale.workers=auto scale.gpus_per_worker=auto takes what is there"
        )
    idle = (
        f", {found.gpus - used} not used with {scale.workers} workers" if used < found.gpus else ", all used"
    )
    return f"{_gpus(found.gpus)}{idle}; {found.cpus} CPUs"


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"
