"""`vergence evaluate --protocol zero_shot`: tiny runs of CLIP, whose texts are bytes or pairs of bytes, asked by names."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from shard_files import png, write_shard
from tiny_encoder import make_card
from tokenizers import Tokenizer

from vergence.methods.clip import CLIP
from vergence.pipelines import cli, show
from vergence.pipelines.evaluate import evaluate
from vergence.pipelines.handover import hand_over, trained
from vergence.pipelines.recipe import Recipe, build_method, initial_encoder, load_recipe
from vergence.pipelines.resolve import data_facts, resolve
from vergence.platform.data.index import open_index
from vergence.platform.encoders.export import export_encoder
from vergence.platform.encoders.load import load_encoder
from vergence.platform.errors import UserError
from vergence.platform.evaluate.report import Report
from vergence.platform.runs import commit as commits
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.loop import RankLoop

COLOURS = ("blue", "green", "red")  # as the index numbers words


def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, more or less in the colour of its class: images (count, 8, 8, 3) and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, 8, 8, 3))
    images[np.arange(count), :, :, 2 - labels] += rng.integers(0, 120, (count, 1, 1))
    return images.astype(np.uint8), labels


def write(path: Path, seed: int, count: int, words: bool = True) -> str:
    samples = [
        (f"{i:03d}", {"png": png(image), "cls": (COLOURS[label] if words else str(label)).encode()})
        for i, (image, label) in enumerate(zip(*draw(seed, count)))
    ]
    return str(write_shard(path, samples))


def recipe_of(shard: str, *more: str) -> Recipe:
    settings = (
        "data.holdout=0.25", "epochs=4", "encoder.width=0.0625", "batch.global=24", "views.0.size=8", "norm.group=12",
        "precision=fp32", "scale.workers=1", "track.every_steps=1", "track.register=null", "optim.lr=0.003",
        "method.text_layers=1",
    )  # fmt: skip
    return load_recipe("clip-cifar10", [f"data.train={shard}", *settings, *more])


def train(rank: int, world_size: int, folder: Path, name: str, *more: str) -> None:
    shard = folder / "train.tar"
    recipe, index = recipe_of(str(shard), *more), open_index(shard, folder / "index")
    resolved = resolve(recipe, index, build_method(recipe, data_facts(recipe, index)))
    run = Run(name)
    run.logs.mkdir(parents=True)
    with locked(run):
        RankLoop(resolved.job(run, {}), None, lambda: False).run(
            resolved.stream.share(step, rank, world_size) for step in range(resolved.steps)
        )
        method = build_method(recipe, data_facts(recipe, index))
        hand_over(recipe, run, index, method, tracker=cast(Any, None), says=lambda text: None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """(folder, train, test); the runs are `run` and `pairs`."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(folder / "home"))
        sets = write(folder / "train.tar", 0, 96), write(folder / "test.tar", 1, 60)
        run_ranks(train, 1, folder, "run")
        run_ranks(train, 1, folder, "pairs", "data.vocabulary=300")
        yield folder, *sets


def tokens(text: str, run: str) -> list[int]:
    """By `tokenizers` itself from the last commit, or bytes."""
    if run == "run":
        return list(text.encode())
    newest = commits.newest(Run(run).commits)
    assert newest is not None
    found: list[int] = Tokenizer.from_str(newest.manifest["vocabulary"]).encode(text).ids
    return found


def naive_top1(templates: tuple[str, ...], names: tuple[str, ...] = COLOURS, of: str = "run") -> float:
    """In float64 from the commit's weights: the nearest mean of unit captions."""
    run, encoder = Run(of), load_encoder(of)
    assert encoder.card is not None
    recipe = Recipe.parse(encoder.card.recipe, "card")
    method = build_method(recipe, data_facts(recipe, open_index(recipe.data.train, run.path / "index")))
    commit = commits.newest(run.commits)
    assert commit is not None
    assert isinstance(method, CLIP)
    trained(method, commit)
    method.double().eval()
    images, labels = draw(1, 60)
    with torch.no_grad():
        z = F.normalize(method.embed_images(torch.from_numpy(encoder(images)).double()), dim=1)
        classes = []
        for name in names:
            texts = [tokens(each.replace("{class}", name), of) for each in templates]
            each = [
                method.embed_text({"text": torch.tensor([text]), "text.length": torch.tensor([len(text)])})
                for text in texts
            ]
            classes.append(F.normalize(F.normalize(torch.cat(each), dim=1).mean(0), dim=0))
    return float(((z @ torch.stack(classes).T).argmax(1).numpy() == labels).mean())


def test_classes_are_told_by_their_names_beside_chance(
    work: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, test = work
    command = ["evaluate", "run", "--test", test, "--protocol", "zero_shot", "--device", "cpu"]
    assert cli.main([*command, "--json", str(folder / "r.json")]) == 0
    report = Report.model_validate_json((folder / "r.json").read_text())
    recipe = recipe_of(test)
    figure = report.results["encoder"]["zero_shot-v1"]
    assert figure.top1 == naive_top1(recipe.data.captions) > 0.5
    assert figure.chance == pytest.approx(1 / 3)
    assert figure.interval is not None
    low, high = figure.interval
    n, p = 60, figure.top1  # the ends are where a test of the share is at 1.96 standard errors
    for end in (low, high):
        assert abs(p - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5)
    assert 1 / 3 < low < p < high
    assert report.data.bank is None
    assert report.data.names == COLOURS
    assert report.protocols["zero_shot-v1"]["templates"] == list(recipe.data.captions)
    out = " ".join(capsys.readouterr().out.split())
    for said in (f"{p:.4f}", f"{low:.4f} to {high:.4f}, chance 0.3333", "no bank, test 60", "of 3 classes"):
        assert said in out


def test_names_and_templates_may_be_given_and_a_bank_stands_beside(
    work: tuple[Path, str, str], tmp_path: Path
) -> None:
    _, bank, test = work
    template = "the {class}"
    report = evaluate("run", bank, test, protocols=["knn", "zero_shot"], templates=[template])
    assert list(report.scores) == ["knn-v1", "zero_shot-v1"]
    assert report.scores["zero_shot-v1"] == naive_top1((template,))
    turned = COLOURS[1:] + COLOURS[:1]
    (tmp_path / "names.json").write_text(json.dumps(turned))
    numbers = write(tmp_path / "numbers.tar", 1, 60, words=False)
    command = ["evaluate", "run", "--test", numbers, "--protocol", "zero_shot", "--template", template]
    command += ["--classes", str(tmp_path / "names.json"), "--json", str(tmp_path / "r.json")]
    assert cli.main(command) == 0
    other = Report.model_validate_json((tmp_path / "r.json").read_text()).scores["zero_shot-v1"]
    assert other == naive_top1((template,), turned) < report.scores["zero_shot-v1"]


def test_pairs_of_bytes_are_those_that_the_run_has_learned(
    work: tuple[Path, str, str], tmp_path: Path
) -> None:
    _, bank, test = work
    templates = recipe_of(test).data.captions
    assert len(tokens(templates[0].replace("{class}", "red"), "pairs")) < 10  # of 16 bytes
    report = evaluate("pairs", None, test, protocols=["zero_shot"])
    assert report.scores["zero_shot-v1"] == naive_top1(templates, of="pairs") > 0.5

    first = commits.newest(Run("pairs").commits)
    assert first is not None
    recipe = recipe_of(bank, "data.vocabulary=300", 'data.captions=["the {class} one"]')
    index = open_index(bank, tmp_path / "index")
    method = build_method(recipe, data_facts(recipe, index))
    anew, gone_on = (resolve(recipe, index, method, start=start).stream.vocabulary for start in (None, first))
    assert anew is not None
    assert gone_on is not None
    assert gone_on.json == first.manifest["vocabulary"] != anew.json
    assert 256 < anew.size < 300
    told = show._tokens(resolve(recipe, index, method))
    assert told == f"{anew.size} tokens, learned from captions; the captions teach no more of the 300"


def test_the_card_tells_what_names_alone_told_on_the_holdout(work: tuple[Path, str, str]) -> None:
    card = load_encoder("run").card
    assert card is not None
    lines = (Run("run").logs / "metrics.jsonl").read_text().splitlines()
    told = [record["zero_shot"] for record in map(json.loads, lines) if "zero_shot" in record]
    assert len(told) == 4
    assert list(card.metrics) == ["knn", "zero_shot"]
    assert card.metrics["zero_shot"] == told[-1]


def test_what_cannot_be_asked_by_names_is_said_in_one_line(
    work: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bank, test = work
    numbers, few = write(tmp_path / "numbers.tar", 1, 60, words=False), tmp_path / "few.json"
    few.write_text('["red", "green"]')
    for words, message in (
        ([test, "--protocol", "knn,zero_shot"], "--train: knn-v1 needs labelled shards as its bank"),
        ([test, "--baselines"], "--baselines: pixels and untrained encoders read no names"),
        ([test, "--template", "a photo"], "--template 'a photo': has no {class}"),
        ([test, "--classes", str(few)], "--classes: names 2 classes"),
        ([test, "--classes", test], "not a JSON list of the classes' names"),
        ([numbers], "its classes are numbers without names; give --classes FILE"),
        ([numbers, "--classes", str(few)], "are 3"),
    ):
        assert cli.main(["evaluate", "run", "--protocol", "zero_shot", "--test", *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert cli.main(["promote", "none", "--train", bank, "--test", test, "--protocol", "zero_shot"]) == 2

    simclr = load_recipe("simclr-cifar10")
    silent = export_encoder(
        initial_encoder(simclr, 0), make_card(recipe=simclr.dump()), folder / "home" / "silent" / "exports"
    )
    with pytest.raises(UserError, match="simclr reads no text"):
        evaluate(str(silent), None, test, protocols=["zero_shot"])

    def refused(reason: str) -> None:
        with pytest.raises(UserError, match=reason):
            evaluate(str(tmp_path / "copy"), None, test, protocols=["zero_shot"])

    home = folder / "home"
    shutil.copytree(home / "run" / "exports", tmp_path / "copy")
    evaluate(str(tmp_path / "copy"), None, test, protocols=["zero_shot"])  # wherever the file lies
    aside = home / "run" / "commits"
    aside.rename(tmp_path / "aside")
    refused("which is in the commits of run run; there are none in")
    method = build_method(recipe_of(test), data_facts(recipe_of(bank), open_index(bank, tmp_path / "index")))
    state = {f"model.{name}": value for name, value in method.state_dict().items()}
    commits.write(aside, state, {"step": 12}, "test", lambda: True)
    refused("has other weights than this encoder")
    shutil.rmtree(aside)
    (tmp_path / "aside").rename(aside)
    (tmp_path / "copy" / "encoder.json").unlink()
    refused("needs the card")
