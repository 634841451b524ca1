"""Our criteria beside lightly's losses, where both define the same thing: value and gradient in float64, one process.

Each row goes by our method's own criterion and state, and by lightly's class, on the same random embeddings; the largest
relative difference of the value, and of the gradient with respect to the embeddings, must be below 1e-6.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vergence.methods import barlow_twins, byol, dino, moco_v1, simclr, simsiam, swav, vicreg
from vergence.methods.catalog import METHODS
from vergence.methods.method import Batch, DataFacts, Encoder

# lightly is imported where it is used: after torchvision_shim, which comes with the catalog

BOUND = 1e-6
N, D, K = 64, 16, 32  # images, width of the embeddings, prototypes or outputs
QUEUE = 2 * N
TEACHER_TEMPERATURE = 1 / 16  # lightly keeps it in float32, which holds this one exactly
BATCH = Batch([], torch.arange(N))

Draw = Callable[..., Tensor]


class Compared(NamedTuple):
    """One step; both losses are 0-d and follow from the embeddings, a leaf."""

    embeddings: Tensor
    ours: Tensor
    theirs: Tensor


class Nothing(Encoder):
    """Criteria see no images."""

    dim = D

    def forward(self, images: Tensor) -> Tensor:
        return images


def build(name: str, **settings: Any) -> Any:
    """A method of the catalog in float64, with heads that are never called."""
    torch.manual_seed(0)
    config, method = METHODS[name]
    if "hidden_dim" in config.model_fields:
        settings["hidden_dim"] = D
    return method.build(config(embed_dim=D, **settings), Nothing(), DataFacts(N, N, epochs=1)).double()


def of_simclr(draw: Draw) -> Iterator[Compared]:
    from lightly.loss import NTXentLoss

    z = draw(N, 2, D)
    ours = build("simclr", temperature=0.1).criterion(simclr.Embeddings(z), (), BATCH)
    yield Compared(z, ours.loss, NTXentLoss(temperature=0.1)(z[:, 0], z[:, 1]))


def of_moco(draw: Draw) -> Iterator[Compared]:
    """Until the queue has gone round once; both enqueue after the loss."""
    from lightly.loss import NTXentLoss

    method = build("mocov2", temperature=0.2, queue_size=QUEUE)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, D)).double()
    theirs.memory_bank.bank.copy_(method.queue.keys)
    for _ in range(QUEUE // N + 1):
        q, k = draw(N, D), draw(N, D).detach()
        out, targets = moco_v1.Embeddings(q[:, None]), moco_v1.Targets(F.normalize(k, dim=1))
        yield Compared(q, method.criterion(out, targets, BATCH).loss, theirs(q, k))
        method.after_step(out, targets, BATCH)


def of_byol(draw: Draw) -> Iterator[Compared]:
    """Ours is 4 + 4 times theirs: squared distances of unit vectors, and both directions are summed."""
    p, z = draw(N, 2, D), draw(N, 2, D).detach()
    ours = build("byol").criterion(byol.Embeddings(p), byol.Targets(z), BATCH)
    yield Compared(p, ours.loss, 4 + 4 * _negative_cosines(p, z))


def of_simsiam(draw: Draw) -> Iterator[Compared]:
    p, z = draw(N, 2, D), draw(N, 2, D).detach()
    ours = build("simsiam").criterion(simsiam.Embeddings(p, z), (), BATCH)
    yield Compared(p, ours.loss, _negative_cosines(p, z))


def _negative_cosines(p: Tensor, z: Tensor) -> Tensor:
    """Both directions halved, as lightly's examples write it."""
    from lightly.loss import NegativeCosineSimilarity

    cosine = NegativeCosineSimilarity()
    return 0.5 * (cosine(p[:, 0], z[:, 1]) + cosine(p[:, 1], z[:, 0]))


def of_barlow_twins(draw: Draw) -> Iterator[Compared]:
    from lightly.loss import BarlowTwinsLoss

    z = draw(N, 2, D)
    ours = build("barlow_twins", redundancy_weight=5e-3).criterion(barlow_twins.Embeddings(z), (), BATCH)
    yield Compared(z, ours.loss, BarlowTwinsLoss(lambda_param=5e-3)(z[:, 0], z[:, 1]))


def of_vicreg(draw: Draw) -> Iterator[Compared]:
    from lightly.loss import VICRegLoss

    z = draw(N, 2, D)
    ours = build("vicreg").criterion(vicreg.Embeddings(z), (), BATCH)
    yield Compared(z, ours.loss, VICRegLoss()(z[:, 0], z[:, 1]))


def of_swav(draw: Draw, *, small: int = 0, queued: bool = False) -> Iterator[Compared]:
    """Scores come from our prototypes on both sides; queued: codes are balanced with a full queue."""
    from lightly.loss import SwaVLoss

    method = build("swav", prototypes=K, queue_size=QUEUE if queued else 0, queue_from=0.0)
    for _ in range(QUEUE // N if queued else 0):
        earlier = draw(N, 2, D)
        method.after_step(swav.Embeddings(earlier, method.prototypes(earlier)), (), BATCH)
    z = draw(N, 2 + small, D)
    out = swav.Embeddings(z, method.prototypes(z))
    views = list(out.scores_bvk.unbind(dim=1))
    queues = [method.prototypes(queue.keys).detach() for queue in method.queues] or None
    yield Compared(z, method.criterion(out, (), BATCH).loss, SwaVLoss()(views[:2], views[2:], queues))


def of_dino(draw: Draw) -> Iterator[Compared]:
    """Two steps, with small crops: the second one sees the centre that the first has moved."""
    from lightly.loss import DINOLoss

    method = build("dino", outputs=K, teacher_temperature=TEACHER_TEMPERATURE, center_momentum=0.9)
    theirs = DINOLoss(K, teacher_temp=TEACHER_TEMPERATURE, center_momentum=0.9).double()
    for _ in range(2):
        z = draw(N, 4, D)
        out = dino.Embeddings(z, method.last(z))
        targets = dino.Targets(method.last(draw(N, 2, D)).detach())
        views = list(targets.logits_btk.unbind(dim=1)), list(out.logits_bvk.unbind(dim=1))
        yield Compared(z, method.criterion(out, targets, BATCH).loss, theirs(*views))
        method.after_step(out, targets, BATCH)


ROWS: dict[str, Callable[[Draw], Iterator[Compared]]] = {
    "SimCLR: NTXentLoss": of_simclr,
    "MoCo, 3 steps of its queue: NTXentLoss with a memory bank": of_moco,
    "BYOL: 4 + 4 x NegativeCosineSimilarity": of_byol,
    "SimSiam: NegativeCosineSimilarity": of_simsiam,
    "Barlow Twins: BarlowTwinsLoss": of_barlow_twins,
    "VICReg: VICRegLoss": of_vicreg,
    "SwAV: SwaVLoss": of_swav,
    "SwAV with small crops: SwaVLoss": lambda draw: of_swav(draw, small=3),
    "SwAV with a queue: SwaVLoss": lambda draw: of_swav(draw, queued=True),
    "DINO, 2 steps, small crops: DINOLoss": of_dino,
}


def run(rounds: int, says: Callable[[str], None]) -> dict[str, Any]:
    """Largest relative difference of value and gradient in each row; every round draws other embeddings."""
    worst = {}
    for name, row in ROWS.items():
        worst[name] = max(difference(step) for seed in range(rounds) for step in row(normal(seed)))
        says(f"{name}: {worst[name]:.1e}")
    return {"at_most": {name: (value, BOUND) for name, value in worst.items()}}


def normal(seed: int) -> Draw:
    """Normal leaves in float64, of mean 1; VICReg's hinge at a standard deviation of 1 acts on most dimensions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (0.9 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 1).requires_grad_()

    return draw


def difference(step: Compared) -> float:
    z, ours, theirs = step
    [ours_gradient], [theirs_gradient] = (
        torch.autograd.grad(loss, z, retain_graph=True) for loss in (ours, theirs)
    )
    pairs = ((ours.detach(), theirs.detach()), (ours_gradient, theirs_gradient))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
