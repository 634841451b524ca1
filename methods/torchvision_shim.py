"""The only door to torchvision and timm: `from vergence.methods.torchvision_shim import timm, torchvision`.

A torchvision wheel built for CUDA does not import beside CPU-only torch: its C++ extension cannot load, the
load error is swallowed, and a fake kernel is then registered for the operator `torchvision::nms` that does
not exist. Declaring the schemas of such operators is enough for transforms, models, datasets and all of
timm. With a matching pair nothing is changed. Operators without a kernel (nms) and torchvision.io stay
broken: nothing here uses them.
"""

import sys

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    _library = torch.library.Library("torchvision", "FRAGMENT")  # the schemas live as long as this object
    for _operator in ("nms", "qnms"):
        _library.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import timm

__all__ = ["timm", "torchvision"]
