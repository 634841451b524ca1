"""What `auto` in `scale` comes to, what of the machine is not used, and how workers and samples fit the batch."""

from vergence.pipelines.recipe import Recipe
from vergence.platform.cluster import session
from vergence.platform.cluster.capacity import Found, Need, ScaleConfig, fits, found_here, settle
from vergence.platform.data.plan import Plan
from vergence.platform.errors import UserError


def found_for(recipe: Recipe) -> Found:
    """What a run of this recipe would find: on this machine, or on the nodes of the Ray session that it joins."""
    if session.place() == "own":
        return found_here()
    if not recipe.scale.is_open:
        return Found(0, 0)  # a cluster is asked only where the recipe leaves something to it
    with session.opened(Need(ScaleConfig(), 1, recipe.data.reader_cpus)):
        nodes = session.nodes()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return Found(int(cpus), int(gpus), nodes=tuple(nodes))


def with_scale(recipe: Recipe, found: Found, trials: int = 0) -> Recipe:
    """The recipe with numbers in its `scale` section. trials: so many runs of it share what was found; 0: one has all."""
    if not recipe.scale.is_open:
        return recipe

    def fitting(workers: int) -> bool:
        if not divides(recipe, workers):
            return False
        one = ScaleConfig(workers=workers, cpus_per_worker=recipe.scale.cpus_per_worker)
        need = Need(one, recipe.data.readers, recipe.data.reader_cpus, trials)
        return not found.nodes or fits(need, found.nodes) is None

    scale = settle(recipe.scale, found.shared(max(1, trials)), fitting)
    return recipe.model_copy(update={"scale": scale})


def trials_at_a_time(recipe: Recipe, found: Found) -> int:
    """Runs of the recipe that train side by side: each with a GPU a worker, without GPUs with its CPUs."""
    scale = recipe.scale
    places = found.gpus if found.gpus and scale.gpus_per_worker else found.cpus // scale.cpus_per_worker
    return max(1, places // (1 if scale.workers == "auto" else scale.workers))


def divides(recipe: Recipe, workers: int) -> bool:
    """Whether so many workers can share the global batch and its norm groups."""
    share, rest = divmod(recipe.batch.global_batch, workers)
    if rest or share % (recipe.batch.micro or share):
        return False
    group = recipe.norm.for_method(False).group
    return (
        not isinstance(group, int)
        or share % group == 0
        or (group % share == 0 and (share * workers) % group == 0)
    )


def plan_for(recipe: Recipe, num_samples: int) -> Plan:
    """The order of the run's samples. UserError naming the nearest batch that divides: there are too few samples."""
    share, size = recipe.data.holdout_share(num_samples), recipe.batch.global_batch
    left = Plan(num_samples, share, recipe.seed, 0).num_training
    if left >= size:
        return Plan(num_samples, share, recipe.seed, size, recipe.data.order)
    workers = 1 if recipe.scale.workers == "auto" else recipe.scale.workers
    smaller = (n for n in range(left, 0, -1) if divides(_with_batch(recipe, n), workers))
    cure = next((f"batch.global={n} fits" for n in smaller), "pack more images, or set a smaller norm.group")
    raise UserError(
        f"batch.global={size} is more than the {left} training samples (of {num_samples}, holdout {share:g}); {cure}"
    )


def _with_batch(recipe: Recipe, size: int) -> Recipe:
    return recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"global_batch": size})})


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
