"""The rank loop on two gloo ranks, in micro-batches, against the same run written down plainly.

One run holds what can happen to it: steps that are not finite, unreadable samples, a stop and a resume.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from plain_run import PlainRun, Setting, TinyEncoder
from ranks import import_deepspeed, run_ranks
from shard_files import png, write_shard
from small_methods import FACTS

from vergence.methods.catalog import METHODS
from vergence.methods.method import Method
from vergence.pipelines.recipe import Recipe
from vergence.pipelines.resolve import resolve
from vergence.platform.augment.crop import cut
from vergence.platform.data.index import open_index
from vergence.platform.data.share import Share
from vergence.platform.runs import commit as commits
from vergence.platform.runs.outcome import Outcome
from vergence.platform.runs.run import Run, locked
from vergence.platform.train.job import Job
from vergence.platform.train.loop import RankLoop

WORLD, SHARE = 2, 16
IMAGES = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """How a setting is run, and what happens to it on the second rank."""

    setting: Setting
    regime: str
    zero: int
    method: Mapping[str, Any]
    not_finite: Mapping[int, str] = {}  # step -> "loss" or "gradient", or "all losses": of both ranks
    bad: tuple[
        tuple[int, int], ...
    ] = ()  # step, and place in the global batch, of a sample that has a stand-in
    stop_during: int | None = None  # step
    first_id: int = 0


COMMON: dict[str, Any] = {
    "seed": 5,
    "epochs": 3,
    "global_batch": WORLD * SHARE,
    "micro": 8,
    "warmup_epochs": 0.5,
    "momentum": 0.8,
    "weight_decay": 0.01,
    "frozen": "projector.0.",
    "frozen_until": 1.0,
    "mean": 0.4,
    "std": 0.25,
}
CASES = {
    "mocov2": Case(
        Setting("mocov2", **COMMON, group=2, span=4, lr=1.0, clip=0.5, teacher_momentum=0.7, temperature=0.2),
        regime="two-pass",
        zero=0,
        method={"momentum": 0.7, "queue_size": 48, "temperature": 0.2},
        not_finite={2: "loss", 4: "gradient"},
        bad=((1, 19), (3, 20), (4, 17), (4, 30)),
        stop_during=4,
    ),
    "byol": Case(
        Setting(
            "byol", **COMMON, group=4, span=None, lr=0.4, clip=0.5, teacher_momentum=0.6, temperature=1.0
        ),
        regime="kept",
        zero=1,
        method={"momentum": 0.6},
        not_finite={5: "all losses"},
    ),
    "simclr": Case(
        Setting(
            "simclr", **COMMON, group=4, span=None, lr=0.5, clip=0.5, teacher_momentum=0.0, temperature=0.3
        ),
        regime="two-pass",
        zero=2,
        method={"temperature": 0.3},
        first_id=2**40,
    ),
}


class Ran(NamedTuple):
    """A run to its end, on each rank, and the plain run."""

    case: Case
    states: list[list[Arrays]]  # before each step and after the last, by rank
    outcomes: list[list[Outcome]]  # of each attempt, by rank
    commits: list[commits.Commit]
    records: list[dict[str, Any]]  # of steps
    plain: list[Arrays]
    plain_records: list[dict[str, float]]


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_imported_once() -> None:
    import_deepspeed()


@pytest.fixture(scope="module", params=CASES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(folder / "home"))
        yield run(case, folder)


def run(case: Case, folder: Path) -> Ran:
    job, orders = job_of(case, folder, Run("r", attempt="test")), orders_of(case)
    ranks = run_ranks(train, WORLD, case, job, orders)
    plain = plain_run(case, job.build())
    states, plain_records = [plain.arrays()], []
    for _ in orders:
        plain_records.append(plain.train_step())
        states.append(plain.arrays())
    lines = (json.loads(line) for line in (job.run / "logs" / "metrics.jsonl").read_text().splitlines())
    found = [commits.read(path) for path in sorted((job.run / "commits").glob("step-*"))]
    return Ran(
        case,
        [states for states, _ in ranks],
        [outcomes for _, outcomes in ranks],
        [commit for commit in found if commit is not None],
        [line for line in lines if "event" not in line],
        states,
        plain_records,
    )


def plain_run(case: Case, method: Method) -> PlainRun:
    bad = [step for step, _ in case.bad]
    return PlainRun(case.setting, method.state_dict(), IMAGES, case.not_finite, bad, case.first_id)


def orders_of(case: Case) -> list[np.ndarray]:
    """Rows of IMAGES in each step's global batch."""
    plain = PlainRun(case.setting, {}, IMAGES)
    return [plain.order(step) for step in range(plain.steps)]


def job_of(case: Case, folder: Path, run: Run) -> Job:
    """The recipe of a case, resolved, with a method that is not finite when the case says so."""
    s, shard = case.setting, folder / "t-000000.tar"
    if not shard.exists():
        write_shard(shard, ((f"{i}", {"png": png(image)}) for i, image in enumerate(IMAGES)))
    raw = {
        "seed": s.seed,
        "epochs": s.epochs,
        "precision": "fp32",
        "method": {"name": s.method, "hidden_dim": 16, "embed_dim": 8, **case.method},
        "data": {
            "train": str(shard),
            "holdout": 0.0,
            "max_bad": 0.03,
            "mean": [s.mean] * 3,
            "std": [s.std] * 3,
        },
        "views": [
            {
                "count": 2,
                "size": 8,
                "crop_scale": [1, 1],
                "crop_ratio": [1, 1],
                "jitter": 1,
                "brightness": 0.5,
            }
        ],
        "norm": {"group": s.group, "span": s.span},
        "batch": {"global": s.global_batch, "micro": s.micro, "regime": case.regime},
        "optim": {
            "lr": s.lr / 4,
            "per": s.global_batch // 4,
            "momentum": s.momentum,
            "weight_decay": s.weight_decay,
            "clip": s.clip,
            "groups": [{"match": f"{s.frozen}*", "frozen_until": s.frozen_until}],
        },
        "schedule": {"warmup_epochs": s.warmup_epochs},
        "scale": {"workers": WORLD, "zero": case.zero},
        "track": {"every_steps": 1},
        "commit": {"every_steps": 4, "keep": 100},
    }
    recipe = Recipe.parse(raw, "recipe")

    def build() -> Method:
        torch.manual_seed(s.seed)
        return METHODS[s.method][1].build(recipe.method, TinyEncoder(), FACTS)

    run.logs.mkdir(parents=True)
    resolved = resolve(recipe, open_index(shard, folder / "index"), build())
    return replace(resolved.job(run, {}), build=build)


def train(
    rank: int, world: int, case: Case, job: Job, orders: list[np.ndarray]
) -> tuple[list[Arrays], list[Outcome]]:
    """Attempt after attempt, until one is not interrupted."""
    states: list[Arrays] = []
    outcomes = [attempt(rank, case, job, orders, states)]
    while outcomes[-1].status == "interrupted":
        outcomes.append(attempt(rank, case._replace(stop_during=None), job, orders, states))
    return states, outcomes


def attempt(rank: int, case: Case, job: Job, orders: list[np.ndarray], states: list[Arrays]) -> Outcome:
    commit = commits.newest(job.run / "commits")
    start = commit.step if commit else 0
    loop = RankLoop(job, commit, lambda: rank == 0 and loop.step == case.stop_during)
    upset(loop.method, rank, case, orders)
    del states[start:]

    def shares() -> Iterator[Share]:
        for step in range(start, job.steps):
            states.append(arrays(loop))
            places = rank * SHARE + np.arange(SHARE)
            ids, epoch = orders[step][places] + case.first_id, step // job.plan.batches_per_epoch
            yield Share(
                ids=ids,
                positions=step * WORLD * SHARE + places,
                bad=np.array([(step, place) in case.bad for place in places.tolist()]),
                pictures=cut(IMAGES[orders[step][places]], ids, epoch, job.views, job.plan.seed),
                fields={},
            )

    with locked(Run(job.run.name, attempt="test")) if rank == 0 else nullcontext():
        outcome = loop.run(shares())
    states.append(arrays(loop))
    return outcome


def upset(method: Any, rank: int, case: Case, orders: list[np.ndarray]) -> None:
    """Losses or gradients are not finite in the steps that the case names."""
    share = slice(rank * SHARE, (rank + 1) * SHARE)
    steps = {tuple((order[share] + case.first_id).tolist()): step for step, order in enumerate(orders)}
    criterion = method.criterion

    def sometimes_not_finite(out: Any, targets: Any, batch: Any) -> Any:
        losses, step = criterion(out, targets, batch), steps[tuple(batch.ids.tolist())]
        match case.not_finite.get(step), rank:
            case ("all losses", _) | ("loss", 1):
                return losses._replace(loss=losses.loss + float("nan"))  # its gradient is finite
            case ("gradient", 1):
                return losses._replace(loss=losses.loss + (out[0].sum() * 0).sqrt())
            case _:
                return losses

    method.criterion = sometimes_not_finite


def arrays(loop: RankLoop) -> Arrays:
    return {name: value.numpy().copy() for name, value in loop.engine.state().items()}


def test_every_step_leaves_the_state_of_the_plain_run(ran: Ran) -> None:
    assert_as_plain(ran)


def assert_as_plain(ran: Ran) -> None:
    for rank, states in enumerate(ran.states):
        assert len(states) == len(ran.plain)
        for step, (state, plain) in enumerate(zip(states, ran.plain)):
            assert state.keys() == plain.keys()
            for name, value in plain.items():
                where = f"{name} on rank {rank} after {step} steps"
                np.testing.assert_allclose(state[name], value, rtol=0, atol=2e-5, err_msg=where)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("regime", ["one", "kept", "two-pass"])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_so_it_is_in_every_regime_and_at_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, regime: str, zero: int
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    case = CASES[name]._replace(regime=regime, zero=zero)
    if regime == "one":
        case = case._replace(setting=replace(case.setting, micro=SHARE))
    assert_as_plain(run(case, tmp_path))


def test_ranks_are_bit_equal_after_every_step(ran: Ran) -> None:
    first, *others = ran.states
    for states in others:
        for step, (state, other) in enumerate(zip(first, states, strict=True)):
            assert_same(state, other, f"ranks after {step} steps")


def test_a_run_that_was_stopped_ends_bit_equal_to_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    stopped = CASES["mocov2"]
    todo = []
    for name, case in (("stopped", stopped), ("calm", stopped._replace(stop_during=None))):
        todo.append((case, job_of(case, tmp_path, Run(name, attempt="test"))))
    for (states, outcomes), (calm, _) in run_ranks(train_all, WORLD, todo):
        assert len(outcomes) == 2
        assert_same(states[-1], calm[-1], "stopped and not")


def assert_same(a: Arrays, b: Arrays, what: str) -> None:
    differing = [name for name in a if not np.array_equal(a[name], b[name])]
    assert not differing, f"{what}: {differing}"


def test_records_are_those_of_the_plain_run(ran: Ran) -> None:
    assert [record["step"] for record in ran.records] == list(range(len(ran.plain_records)))
    for step, (record, plain) in enumerate(zip(ran.records, ran.plain_records)):
        counts = {"updates", "skipped", "bad", "bad_in_epoch"}
        assert {name: record[name] for name in counts} == {name: plain[name] for name in counts}
        names = {"lr"} if step in ran.case.not_finite else plain.keys()
        if ran.case.not_finite.get(step) == "loss":  # the mean of those that there are
            assert record["loss"] == pytest.approx(plain["loss"], rel=0.2)
        assert ("loss" in record) == (ran.case.not_finite.get(step) != "all losses")
        for name in names - counts:
            assert record[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-6), f"{name} of step {step}"


def test_commits_hold_what_the_ranks_had_after_so_many_steps(ran: Ran) -> None:
    stopped = set() if ran.case.stop_during is None else {ran.case.stop_during + 1}
    assert {commit.step for commit in ran.commits} == {3, 6, 9} | {4, 8} | stopped
    for commit in ran.commits:
        state = {name: value.numpy() for name, value in commits.load_state(commit).items()}
        assert_same(ran.states[0][commit.step], state, f"commit {commit.step}")
        counts, record = dict(commit.manifest["counts"]), ran.records[commit.step - 1]
        assert counts.pop("bad_in_epoch") == (record["bad_in_epoch"] if commit.step % 3 else 0)
        assert counts == {name: record[name] for name in counts}


def test_all_ranks_see_the_stop(ran: Ran) -> None:
    expected = ["finished"] if ran.case.stop_during is None else ["interrupted", "finished"]
    assert [[outcome.status for outcome in outcomes] for outcomes in ran.outcomes] == [expected] * WORLD


ANY = CASES["simclr"]._replace(first_id=0, zero=0)
ENDS = {
    "unreadable": ANY._replace(bad=((3, 16), (3, 31), (4, 20), (4, 21))),
    "not finite": ANY._replace(not_finite=dict.fromkeys((0, 1, 3, 5, 6, 7), "loss")),
    "last step": ANY._replace(stop_during=8),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Job, list[Any]]]]:
    """How runs end, by name: the job, and (states, outcomes) of each rank."""
    folder = tmp_path_factory.mktemp("ends")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERGENCE_HOME", str(folder / "home"))
        patch.setattr("vergence.platform.train.loop.MAX_SKIPPED_IN_A_ROW", 3)
        jobs = {name: job_of(case, folder, Run(name, attempt="test")) for name, case in ENDS.items()}
        todo = [(ENDS[name], replace(job, metrics_every=4)) for name, job in jobs.items()]
        ranks = run_ranks(train_all, WORLD, todo)
        yield {name: (job, [rank[i] for rank in ranks]) for i, (name, job) in enumerate(jobs.items())}


def train_all(
    rank: int, world: int, todo: list[tuple[Case, Job]]
) -> list[tuple[list[Arrays], list[Outcome]]]:
    return [train(rank, world, case, job, orders_of(case)) for case, job in todo]


@pytest.mark.parametrize(
    ("name", "statuses", "steps", "message"),
    [
        ("unreadable", ["failed"], 5, "4 unreadable samples in this epoch are more than data.max_bad=0.03"),
        ("not finite", ["failed"], 8, "3 steps in a row had a loss or gradients that are not finite"),
        ("last step", ["interrupted", "finished"], 9, ""),
    ],
    ids=ENDS,
)
def test_ends_are_the_same_on_all_ranks(
    ends: Any, name: str, statuses: list[str], steps: int, message: str
) -> None:
    job, ranks = ends[name]
    for states, outcomes in ranks:
        assert [outcome.status for outcome in outcomes] == statuses
        assert message in outcomes[0].message
        assert len(states) == steps + 1
    lines = [json.loads(line) for line in (job.run / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "event" not in line] == [
        step for step in (0, 3, 7, 8) if step < steps
    ]  # every fourth, the first and the last
