"""SimCLR as lightly's documentation writes it, on a ResNet-18 of our width; leaves a mark a step.

Its head, loss and transform; its benchmark's optimiser for CIFAR-10 (momentum 0.9, weight decay 5e-4, lr 0.12 at
batch 256, cosine) are the defaults, and the backbone starts as timm starts it, without zeros at the residual gains.

python -m benchmarks.lightly_simclr FOLDER MARKS [--bf16] [--channels-last] [--compile]
"""

import argparse
import json
import time
from pathlib import Path

import torch

from vergence.methods import torchvision_shim  # noqa: F401  lightly imports torchvision
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.platform.train.schedule import ScheduleConfig

ENCODER = EncoderConfig(name="resnet18", stem="cifar", width=0.25, zero_init_residual=False)


def model(hidden_dim: int) -> torch.nn.Module:
    from lightly.models.modules import SimCLRProjectionHead

    encoder = build_encoder(ENCODER)
    return torch.nn.Sequential(encoder, SimCLRProjectionHead(encoder.dim, hidden_dim, 128))


def loader(folder: Path, batch: int, workers: int) -> torch.utils.data.DataLoader:
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    dataset = LightlyDataset(str(folder), transform=transform)
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )


def train(options: argparse.Namespace) -> torch.nn.Module:
    """The documentation's loop, with the learning rate of our schedule; the encoder."""
    from lightly.loss import NTXentLoss

    net, criterion = model(128).to(options.device), NTXentLoss(temperature=options.temperature)
    if options.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(net) if options.compile else net
    optimizer = torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9, weight_decay=5e-4)
    batches, schedule = (
        loader(options.folder, options.batch, options.workers),
        ScheduleConfig(warmup_epochs=options.warmup),
    )
    step, steps = 0, options.epochs * len(batches)
    for _ in range(options.epochs):
        for (x0, x1), _, _ in batches:
            optimizer.param_groups[0]["lr"] = options.lr * schedule.at(step / steps, options.epochs)
            x0, x1 = (x.to(options.device) for x in (x0, x1))
            if options.channels_last:
                x0, x1 = (x.contiguous(memory_format=torch.channels_last) for x in (x0, x1))
            with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
                z0, z1 = forward(x0), forward(x1)
            loss = criterion(z0.float(), z1.float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with options.marks.open("a") as file:
                file.write(json.dumps({"step": step, "loss": loss.item(), "time": time.time()}) + "\n")
            step += 1
    return net[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="class/NAME.webp")
    parser.add_argument("marks", type=Path, help="gets a JSON line a step")
    parser.add_argument("--export", type=Path, help="folder for the trained encoder, in our form")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.12)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--warmup", type=float, default=0.0, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for name in ("--bf16", "--channels-last", "--compile"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    encoder = train(options)
    if options.export:
        from vergence.platform.encoders.export import EncoderCard, export_encoder

        card = EncoderCard(
            name="lightly", method="simclr", backbone=ENCODER.model_dump(), dim=128, size=32,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), images_seen=0, recipe_digest="",
            data_digest="", code_version="lightly 1.6.0",
        )  # fmt: skip
        export_encoder(encoder, card, options.export)


if __name__ == "__main__":
    main()
