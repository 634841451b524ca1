import subprocess
import sys
import textwrap

import pytest


def python(code: str) -> str:
    """stdout of a fresh process: imports are tested where nothing is imported yet."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_torchvision_and_timm_work_through_the_shim() -> None:
    out = python("""
        from vergence.methods.torchvision_shim import timm, torchvision
        import torch
        from torchvision.transforms import v2
        images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        print(tuple(v2.RandomResizedCrop(4, antialias=True)(images).shape))
        print(tuple(timm.create_model("resnet18", num_classes=0)(images.float()).shape))
        print(len(torchvision.datasets.FakeData(size=3, image_size=(3, 8, 8))))
    """)
    assert out.split("\n")[:3] == ["(2, 3, 4, 4)", "(2, 512)", "3"]


def test_a_torchvision_that_imports_is_left_alone() -> None:
    out = python("""
        import sys, types
        plain = sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["timm"] = types.ModuleType("timm")
        import torch
        import vergence.methods.torchvision_shim as shim
        operators = torch._C._dispatch_get_all_op_names()
        print(shim.torchvision is plain, [name for name in operators if "torchvision" in name])
    """)
    assert out.strip() == "True []"


def test_another_failure_of_torchvision_is_not_hidden() -> None:
    with pytest.raises(AssertionError, match="RuntimeError: something else"):
        python("""
            import sys
            class Broken:
                def find_spec(self, name, path=None, target=None):
                    if name == "torchvision":
                        raise RuntimeError("something else")
            sys.meta_path.insert(0, Broken())
            import vergence.methods.torchvision_shim
        """)
