"""What CPC learns of speech: digits of speakers that it never heard, against log-mel spectra, kept as JSON.

OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks.cpc_audio [--epochs 40] [--seeds 0 1 2]

A logistic regression is trained on the digits of four speakers and tested on two others: on mean and standard deviation over
time of 40 log-mel bands, and of the codes and summaries of CPC, trained (without labels, on the four) and as initialised. C
is chosen for each kind of features alike, by leaving out one of the four in turn. What is done is not done again.
"""

import argparse
import io
import json
import math
import os
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vergence.methods.cpc import CPC
from vergence.methods.method import Batch, DataFacts
from vergence.pipelines.recipe import build_method, load_recipe

HEARD, UNSEEN = ("george", "jackson", "lucas", "nicolas"), ("theo", "yweweler")
RATE, BANDS, WINDOW, HOP = 8000, 40, 200, 80  # Hz; mel bands; samples: 25 and 10 ms
CHOICES = (0.001, 0.01, 0.1, 1.0)
RESULTS = Path("benchmarks/results/cpc_audio.json")
Features = NDArray[np.float64]


class Digits(NamedTuple):
    waves: list[NDArray[np.float32]]
    digits: NDArray[np.int64]
    speakers: NDArray[np.str_]

    def of(self, speakers: tuple[str, ...]) -> "Digits":
        rows = np.flatnonzero(np.isin(self.speakers, speakers))
        return Digits([self.waves[row] for row in rows], self.digits[rows], self.speakers[rows])


def spoken(path: Path) -> Digits:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".flac"))
        waves = [soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")[0] for name in names]
    words = [Path(name).stem.split("_") for name in names]
    return Digits(waves, np.array([int(w[0]) for w in words]), np.array([w[1] for w in words]))


def log_mel(wave: NDArray[np.float32]) -> Features:
    """(frames, BANDS): triangles of equal width in mel over the power spectrum, in nats."""
    padded = np.pad(wave, (0, max(0, WINDOW - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, 256)) ** 2
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequencies = np.linspace(0, RATE / 2, power.shape[1])
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return np.log(power @ np.clip(np.minimum(rising, falling), 0, None).T + 1e-8)


def pooled(rows: Features) -> Features:
    return np.concatenate([rows.mean(axis=0), rows.std(axis=0)])


def score(train: Digits, x: Features, test: Digits, x_test: Features) -> dict[str, float]:
    """Accuracy on the unseen speakers at the C that is best where each of the others is left out in turn."""

    def right(c: float, rows: NDArray[np.bool_], x_other: Features, digits: NDArray[np.int64]) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        return float(model.fit(x[rows], train.digits[rows]).score(x_other, digits))

    def left_out(c: float) -> float:
        folds = [train.speakers == speaker for speaker in HEARD]
        return float(np.mean([right(c, ~fold, x[fold], train.digits[fold]) for fold in folds]))

    judged = {c: left_out(c) for c in CHOICES}
    c = max(judged, key=lambda each: judged[each])
    everybody = np.ones(len(x), np.bool_)
    return {"C": c, "left_out": judged[c], "unseen": right(c, everybody, x_test, test.digits)}


def batch_of(sounds: Digits, rows: NDArray[np.int64], progress: float = 0.0) -> Batch:
    """These recordings, padded to the longest; ids are rows."""
    lengths = torch.tensor([len(sounds.waves[row]) for row in rows])
    waves = torch.zeros(len(rows), int(lengths.max()))
    for out, row in zip(waves, rows):
        out[: len(sounds.waves[row])] = torch.from_numpy(sounds.waves[row])
    return Batch([], torch.from_numpy(rows), {"audio": waves, "audio.length": lengths}, progress=progress)


def cpc(sounds: Digits, epochs: int, seed: int) -> tuple[CPC, float]:
    """The method of the recipe cpc-spoken_digits, trained in this process, and the last epoch's information in nats."""
    recipe = load_recipe("cpc-spoken_digits", [f"seed={seed}"])
    data = DataFacts(len(sounds.waves), len(sounds.waves), max(1, epochs))
    method = cast(CPC, build_method(recipe, data))
    size, order = recipe.batch.global_batch, np.random.default_rng(seed)
    per_epoch = len(sounds.waves) // size
    optimiser = torch.optim.AdamW(method.parameters(), lr=recipe.optim.lr, weight_decay=0.0)
    information = [0.0]
    for step in range(epochs * per_epoch):
        if step % per_epoch == 0:
            permutation, information = order.permutation(len(sounds.waves)), []
        progress, warm = step / (epochs * per_epoch), min(1.0, (step + 1) / per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = recipe.optim.lr * warm * (1 + math.cos(math.pi * progress)) / 2
        place = step % per_epoch * size
        batch = batch_of(sounds, permutation[place : place + size], progress)
        losses = method.criterion(method(batch), (), batch)
        optimiser.zero_grad()
        losses.loss.backward()
        optimiser.step()
        information.append(losses.information.item())
    return method.eval(), float(np.mean(information))


@torch.no_grad()
def features(method: CPC, sounds: Digits) -> dict[str, Features]:
    """Mean and standard deviation over each recording's codes, and over its summaries; the whole recording is heard."""
    codes, summaries = [], []
    for wave in sounds.waves:
        z: Tensor = method.encoder.features(torch.from_numpy(wave)[None])
        c = method.summary(z[:, None, None])[0, 0, 0]
        codes.append(pooled(z[0].double().numpy()))
        summaries.append(pooled(c.double().numpy()))
    return {"codes": np.stack(codes), "summaries": np.stack(summaries)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    sounds = spoken(Path(os.environ.get("VERGENCE_SHARED", "shared")) / "data/spoken-digits/recordings.zip")
    heard, unseen = sounds.of(HEARD), sounds.of(UNSEEN)

    def keep(name: str, row: dict[str, Any]) -> None:
        found[name] = row
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, row, flush=True)

    if "log-mel" not in found:
        x, x_unseen = (np.stack([pooled(log_mel(wave)) for wave in part.waves]) for part in (heard, unseen))
        keep("log-mel", score(heard, x, unseen, x_unseen))
    for seed in options.seeds:
        for epochs in (0, options.epochs):
            name = f"cpc, {epochs} epochs, seed {seed}"
            if name not in found:
                start = time.process_time()
                method, information = cpc(heard, epochs, seed)
                cpu_s = round(time.process_time() - start)
                known, new = features(method, heard), features(method, unseen)
                row = {kind: score(heard, known[kind], unseen, new[kind]) for kind in known}
                keep(name, {**row, "information": information, "cpu_s": cpu_s})


if __name__ == "__main__":
    main()
