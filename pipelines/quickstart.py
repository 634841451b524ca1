"""`make quickstart`: real images to a registered encoder in minutes; interrupt it anywhere, run it again.

Shards from scikit-learn's handwritten digits -> pretrain -> evaluate -> a map of the embeddings. Each step
that is done is not done again. The test digits are classified as they are, where comparing pixels is hard to beat
since every digit fills its frame, and moved by up to one of their eight pixels, where it is not.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from vergence.pipelines import cli
from vergence.pipelines.look import MAP
from vergence.platform.home import home
from vergence.platform.masking import masked
from vergence.platform.mlflow_store import tracking_uri

RUN = "quickstart"
DIGITS = "sklearn:digits?size=16"
PARTS = {"train": "&split=train", "test": "&split=test", "moved": "&split=test&shift=1"}
MODEL = "models:/digits-encoder@champion"


def main() -> int:
    """All steps; the exit code of the first that fails."""
    started_s = time.monotonic()
    folder = home() / "digits"
    shards = {part: f"{folder}/{part}-*.tar" for part in PARTS}
    reports = {part: home() / RUN / f"report-{part}.json" for part in ("test", "moved")}
    pictures = home() / RUN / "look"
    for part, options in PARTS.items():
        _say(f"shards: {part} digits")
        if code := cli.main(["shards", "pack", DIGITS + options, str(folder), "--name", part]):
            return code
    _say("pretrain: SimCLR without labels (2 Ray workers, DeepSpeed)")
    if code := cli.main(["pretrain", "digits", f"data.train={shards['train']}", "--name", RUN]):
        return code
    for part, report in reports.items():
        if not report.exists():
            _say(f"evaluate: kNN of the registered encoder on the {part} digits")
            command = ["evaluate", MODEL, "--train", shards["train"], "--test", shards[part], "--baselines"]
            if code := cli.main([*command, "--json", str(report)]):
                return code
    if not (pictures / MAP).exists():
        _say("draw: the test digits as the encoder sees them, before and after")
        if code := cli.main(["look", MODEL, shards["test"], "--out", str(pictures)]):
            return code
    _summary(reports, pictures / MAP, time.monotonic() - started_s)
    return 0


def _summary(reports: Mapping[str, Path], picture: Path, seconds: float) -> None:
    test, moved = (_figures(reports[part]) for part in ("test", "moved"))
    print(
        f"\nThe quickstart is complete ({seconds:.0f} s this time).\n"
        f"  kNN on the test digits  {test}\n"
        f"  the same digits, moved  {moved}\n"
        f"  map of the embeddings   {picture}\n"
        f"  use the encoder         mlflow.set_tracking_uri({masked(tracking_uri())!r})\n"
        f"                          mlflow.pyfunc.load_model({MODEL!r}).predict(images)\n"
        f"  next                    .venv/bin/vergence pretrain simclr-cifar10 --help\n"
        f"  your own images         .venv/bin/vergence shards pack FOLDER shards/"
    )


def _figures(report: Path) -> str:
    results = json.loads(report.read_text())["results"]
    trained, initial, raw = (
        results[name]["knn-v1"]["top1"] for name in ("encoder", "as initialised", "raw pixels")
    )
    return f"{trained:.3f}   (as initialised {initial:.3f}, raw pixels {raw:.3f})"


def _say(line: str) -> None:
    print(f"\n== {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
