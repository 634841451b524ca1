"""The peer of `photos`: torchvision's own recipe of SimCLR on PIL images, in a DataLoader with one worker."""

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image, ImageFilter

from vergence.methods.torchvision_shim import torchvision

T = torchvision.transforms


class PilBlur:
    """As MoCo v2's own loader (moco/loader.py): PIL's Gaussian blur, which is five times as fast as torchvision's."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


class TwoViews:
    def __init__(self) -> None:
        self.view = T.Compose(
            [
                T.RandomResizedCrop(224),
                T.RandomHorizontalFlip(),
                T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([PilBlur()], p=0.5),
                T.ToTensor(),
                T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        return self.view(image), self.view(image)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("marks", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torchvision.datasets.ImageFolder(options.folder, TwoViews())
    loader = torch.utils.data.DataLoader(
        images,
        options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=1,
        persistent_workers=True,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )
    step = 0
    with options.marks.open("w") as marks:
        while True:
            for views, _ in loader:
                assert views[0].shape == (options.batch, 3, 224, 224)
                marks.write(json.dumps({"step": step, "time": time.time()}) + "\n")
                marks.flush()
                step += 1


if __name__ == "__main__":
    main()
