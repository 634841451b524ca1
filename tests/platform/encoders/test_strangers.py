"""Strangers: environments of their own with nothing of ours, which read what we register and export.

Each is a new venv with the packages named, of the versions that are tested here.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import MEAN, STD, make_card

from vergence.methods import torchvision_shim
from vergence.methods.parts.backbones import EncoderConfig, build_encoder
from vergence.pipelines import export
from vergence.platform.encoders.encoder import LoadedEncoder
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.encoders.registry import register
from vergence.platform.mlflow_store import artifacts_of, store, tracking_uri

pytestmark = pytest.mark.slow
BATCHES = 1, 7, 64

SCRIPT = """
import sys
import numpy as np
{prepare}
images = np.load("images.npy")
for n in (1, 7, 64):
    np.save(f"{{n}}.npy", embed(images[:n]))
ours = [name for name in ("vergence", "ray", "deepspeed", {absent}) if name in sys.modules]
assert not ours, ours
try:
    import vergence
except ModuleNotFoundError:
    print("a stranger")
"""

WITH_MLFLOW = """
import mlflow
embed = mlflow.pyfunc.load_model("models:/stranger@champion").predict
"""

WITH_ONNXRUNTIME = """
import onnxruntime
session = onnxruntime.InferenceSession("encoder.onnx")
embed = lambda images: session.run(["embedding"], {"image": images})[0]
"""

WITH_TIMM = """
import torch
import {timm_of}
from safetensors.torch import load_file
model = timm.create_model("resnet10t", num_classes=0).eval()
model.load_state_dict(load_file("weights.safetensors"), strict=True)
again = timm.create_model("local-dir:timm", pretrained=True).eval()
mean, std = (torch.tensor(each).view(3, 1, 1) for each in {statistics})
@torch.no_grad()
def embed(images):
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    assert torch.equal(model(x), again(x))
    return model(x).numpy()
"""


def stranger(folder: Path, *packages: str) -> Path:
    """The Python of a new venv with these packages, torch and torchvision first: anything later could pull in another."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pinned = [f"{package}=={version(package).split('+')[0]}" for package in packages]
    first = [package for package in pinned if package.startswith("torch")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for some in filter(None, (first, pinned)):
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *some]
        subprocess.run(pip, check=True, env=environment)
    return python


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedEncoder]:
    """(folder, encoder): images, exports of all formats, and a registry."""
    folder = tmp_path_factory.mktemp("strangers")
    torch.manual_seed(0)
    config = EncoderConfig(name="resnet10t")
    card = make_card(backbone=config.model_dump(), dim=512, size=32)
    exports = export_encoder(build_encoder(config), card, folder / "home" / "run" / "exports")
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    encoder = load_encoder(str(exports))
    export(encoder, folder / "encoder.onnx", "onnx")
    export(encoder, folder / "weights.safetensors", "safetensors")
    export(encoder, folder / "timm", "timm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        uri = tracking_uri()
        with store(uri) as client:
            experiment = client.create_experiment("e", artifact_location=artifacts_of(uri, "e"))
            run_id = client.create_run(experiment).info.run_id
        register(exports, "stranger", run_id=run_id, tags={}, tracking_uri=uri)
        (folder / "uri").write_text(uri)
    return folder, encoder


def check(
    work: tuple[Path, LoadedEncoder], python: Path, prepare: str, absent: str, tolerance: float
) -> None:
    """The stranger's vectors are ours."""
    folder, encoder = work
    script = SCRIPT.format(prepare=prepare, absent=absent)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "MLFLOW_TRACKING_URI": (folder / "uri").read_text(),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [python, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("a stranger")
    images = np.load(folder / "images.npy")
    for n in BATCHES:
        got, expected = np.load(folder / f"{n}.npy"), encoder(images[:n])
        print(
            f"{python.parent.parent.name}: batch {n}, largest difference {np.abs(got - expected).max():.1e}"
        )
        np.testing.assert_allclose(got, expected, atol=tolerance)
        (folder / f"{n}.npy").unlink()


def test_mlflow_torch_and_numpy_without_pickles(work: tuple[Path, LoadedEncoder], tmp_path: Path) -> None:
    python = stranger(tmp_path / "with-mlflow", "torch", "mlflow", "numpy")
    check(work, python, WITH_MLFLOW, '"timm", "torchvision", "onnxruntime"', 1e-5)


def test_onnxruntime_and_numpy(work: tuple[Path, LoadedEncoder], tmp_path: Path) -> None:
    python = stranger(tmp_path / "with-onnxruntime", "onnxruntime", "numpy")
    check(work, python, WITH_ONNXRUNTIME, '"torch", "mlflow"', 1e-4)


def test_timm_safetensors_and_torch(work: tuple[Path, LoadedEncoder], tmp_path: Path) -> None:
    """timm brings torchvision; where its wheel is another build than torch's, the shim alone, one file, makes it load."""
    python = stranger(tmp_path / "with-timm", "torch", "torchvision", "timm", "safetensors", "numpy")
    works = subprocess.run([python, "-c", "import timm"], capture_output=True, check=False).returncode == 0
    if not works:
        shim = Path(torchvision_shim.__file__).read_text()
        (work[0] / "torchvision_shim.py").write_text(shim)
    prepare = WITH_TIMM.replace(
        "import {timm_of}", "import timm" if works else "from torchvision_shim import timm"
    )
    check(work, python, prepare.replace("{statistics}", str((MEAN, STD))), '"mlflow", "onnxruntime"', 1e-4)
