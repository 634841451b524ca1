"""`vergence promote`: a candidate becomes champion if it is better, by one protocol on the same images."""

import argparse
import json
import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vergence.platform.cluster.capacity import physical_cpus
from vergence.platform.errors import UserError, VergenceError
from vergence.platform.evaluate.definitions import BANKED, versions
from vergence.platform.home import home
from vergence.platform.masking import masked

if TYPE_CHECKING:
    from vergence.platform.encoders.versions import Aliases
    from vergence.platform.evaluate.gate import Verdict
    from vergence.platform.evaluate.report import Report


class Gate(NamedTuple):
    """By what candidates of a model are measured."""

    train: str
    test: str
    protocol: str = "knn"
    margin: float = 0.0


class Promotion(NamedTuple):
    """What was decided about a version, and where the aliases are then; with a dry run, where they would be."""

    name: str
    decision: Literal["promoted", "declined", "rolled back", "nothing to do"]
    reason: str
    version: int | None  # that was decided about
    champion: int | None
    previous: int | None
    verdict: "Verdict | None" = None  # None: nothing was measured


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME", help="registered model whose candidate is measured")
    parser.add_argument("--train", metavar="SHARDS", help="labelled shards: the bank")
    parser.add_argument("--test", metavar="SHARDS", help="labelled shards: what is classified")
    parser.add_argument("--protocol", metavar="NAME", help=f"{' or '.join(BANKED)} (default knn)")
    parser.add_argument(
        "--margin",
        type=float,
        metavar="M",
        help="by which it must be better, in top-1: 0.01 is a point (default 0)",
    )
    parser.add_argument("--rollback", action="store_true", help="make the previous champion champion again")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure and say what would be done; change nothing"
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    parser.add_argument("--json", action="store_true", help="the decision, as JSON")
    parser.epilog = """\
Candidate and champion are measured by one protocol on the same test images. The candidate passes if the lower end of the
95 % interval of the difference (paired bootstrap over the test images) is above the margin. It is champion then, the old
champion is `previous`, and there is no candidate any more; otherwise it stays candidate. Either way both versions keep
their evaluation, and the candidate a tag with the decision and its reason. Shards, protocol and margin are remembered with
the model: the next time NAME is enough. Exit code 0 whatever is decided; a script reads --json.

examples:
  vergence promote simclr-cifar10 --train "cifar10/train-*.tar" --test "cifar10/test-*.tar" --dry-run
  vergence promote simclr-cifar10 --train "cifar10/train-*.tar" --test "cifar10/test-*.tar" --margin 0.005
  vergence promote simclr-cifar10 --json
  vergence promote simclr-cifar10 --rollback"""


def main(args: argparse.Namespace) -> int:
    if args.rollback:
        for option in ("train", "test", "protocol", "margin"):
            if getattr(args, option) is not None:
                raise UserError(f"--rollback: measures nothing, so it takes no --{option}")
        done = rollback(args.name, dry_run=args.dry_run)
    else:
        done = promote(
            args.name,
            args.train,
            args.test,
            protocol=args.protocol,
            margin=args.margin,
            device=args.device,
            dry_run=args.dry_run,
        )
    if args.json:
        print(
            json.dumps({**done._asdict(), "verdict": _dump(done.verdict), "dry_run": args.dry_run}, indent=1)
        )
    else:
        _print(done, args.dry_run)
    return 0


def promote(
    name: str,
    train: str | None = None,
    test: str | None = None,
    *,
    protocol: str | None = None,
    margin: float | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> Promotion:
    """Measure candidate and champion of a registered model by the same protocol on the same images, and decide.

    train, test, protocol, margin: where None, what the model was last decided by (protocol knn and margin 0 at first).
    Raises UserError: no such model, shards or protocol, or nothing yet to decide by; VergenceError: the registry fails,
    and the aliases are as they were, or they have moved meanwhile.
    """
    from vergence.platform.encoders.versions import aliases_of, registry

    asked = f"promote {name}"
    with registry(asked) as client:
        before = aliases_of(client, name, asked)
        kept = _remembered(client, name)
    if before.candidate in (None, before.champion):
        return _nothing_to_do(name, before, dry_run)
    if before.champion is None:
        gate, verdict, reports = None, None, list[Any]()
        passes, reason = True, "there was no champion"
    else:
        gate = _gate(asked, kept, train, test, protocol, margin)
        verdict, reports = _measure(name, before, gate, device)
        passes, reason = verdict.passes, _reason(verdict, reports, before.champion)
    if not dry_run:
        _carry_out(name, before, passes, reason, reports, gate)
    champion, previous = (before.candidate, before.champion or before.previous) if passes else before[1:]
    decision: Literal["promoted", "declined"] = "promoted" if passes else "declined"
    return Promotion(name, decision, reason, before.candidate, champion, previous, verdict)


def rollback(name: str, *, dry_run: bool = False) -> Promotion:
    """Make the previous champion of a registered model champion again.

    Raises UserError: no such model, or no previous champion; VergenceError: the registry fails.
    """
    from vergence.platform.encoders.versions import aliases_of, decide, go_back, registry

    asked = f"promote {name} --rollback"
    with registry(asked, patient=not dry_run) as client:
        before = aliases_of(client, name, asked)
        if before.previous in (None, before.champion):
            raise UserError(
                f"{asked}: its champion is version {before.champion}, and none was champion before"
            )
        reason = f"version {before.previous} is champion again"
        left = before.champion
        if not dry_run:
            if left is not None:
                decide(client, name, left, "rolled back", reason)
            go_back(client, name, before)
    return Promotion(name, "rolled back", reason, left, before.previous, before.previous)


def _nothing_to_do(name: str, before: "Aliases", dry_run: bool) -> Promotion:
    """No candidate, or one that is champion already: a promotion that was interrupted at its very end."""
    from vergence.platform.encoders.versions import CANDIDATE, registry

    if before.candidate is not None and not dry_run:
        with registry(f"promote {name}") as client:
            client.delete_registered_model_alias(name, CANDIDATE)
    reason = f"there is no candidate; champion is version {before.champion}"
    return Promotion(name, "nothing to do", reason, None, before.champion, before.previous)


def _gate(
    asked: str,
    kept: Gate | None,
    train: str | None,
    test: str | None,
    protocol: str | None,
    margin: float | None,
) -> Gate:
    """What was given, and where nothing was, what the model remembers. UserError: too little, or nonsense."""
    if (train is None) != (test is None):
        raise UserError(f"{asked}: --train and --test come together")
    if train is not None and test is not None:
        gate = (kept or Gate("", ""))._replace(train=_absolute(train), test=_absolute(test))
    elif kept is not None:
        gate = kept
    else:
        raise UserError(
            f"{asked}: nothing to measure by yet; give --train SHARDS --test SHARDS, the model remembers them"
        )
    if protocol is not None:
        gate = gate._replace(protocol=protocol)
    if margin is not None:
        gate = gate._replace(margin=margin)
    versions([gate.protocol], BANKED)
    if not -1 < gate.margin < 1:
        raise UserError(
            f"--margin: got {gate.margin:g}, which is in top-1, between -1 and 1; a point is 0.01"
        )
    return gate


def _absolute(pattern: str) -> str:
    """The same shards from any folder."""
    return os.path.join(os.getcwd(), os.path.expanduser(pattern))


def _remembered(client: Any, name: str) -> Gate | None:
    from vergence.platform.encoders.versions import GATE

    text = client.get_registered_model(name).tags.get(GATE)
    try:
        return Gate(**json.loads(text)) if text else None
    except (ValueError, TypeError):  # of another version
        return None


def _measure(name: str, before: "Aliases", gate: Gate, device: str) -> "tuple[Verdict, list[Report]]":
    """The verdict, and the reports of candidate and champion."""
    from vergence.platform.encoders.encoder import usable
    from vergence.platform.encoders.load import load_encoder
    from vergence.platform.evaluate.gate import compare
    from vergence.platform.evaluate.labelled import in_one_numbering, open_labelled
    from vergence.platform.evaluate.measure import measure, reports
    from vergence.platform.evaluate.protocols import PROTOCOLS

    [version] = versions([gate.protocol])
    chosen, protocols = usable(device), [PROTOCOLS[version]]
    bank, asked = (open_labelled(pattern, home() / "index") for pattern in (gate.train, gate.test))
    pair = in_one_numbering(bank, asked)
    encoders = [load_encoder(f"models:/{name}/{each}") for each in (before.candidate, before.champion)]
    measured = measure(
        encoders, pair, protocols, device=chosen, threads=physical_cpus(), cache=home() / "features"
    )
    candidate, champion = (scores[version].correct for scores in measured.scores)
    return compare(candidate, champion, gate.margin), reports(encoders, pair, protocols, measured)


def _reason(verdict: "Verdict", reports: "list[Report]", champion: int) -> str:
    data, [protocol] = reports[0].data, reports[0].protocols
    assert data.bank is not None, "measured by a bank"
    return (
        f"{protocol} {verdict.words}; against version {champion}, bank {data.bank.images:,} images of {data.bank.shards}, "
        f"test {data.test.images:,} of {data.test.shards}"
    )


def _carry_out(
    name: str, before: "Aliases", passes: bool, reason: str, reports: "list[Report]", gate: Gate | None
) -> None:
    """Evaluations and decision first, aliases last: what fails before leaves them as they were."""
    from vergence.platform.encoders.versions import GATE, aliases_of, decide, make_champion, record, registry

    asked, candidate = f"promote {name}", before.candidate
    assert candidate is not None, "somebody to decide about"
    with registry(asked, patient=True) as client:
        for version, report in zip((candidate, before.champion), reports):
            assert version is not None, "a report is of a version"
            record(client, name, version, report)
        if gate is not None:
            client.set_registered_model_tag(name, GATE, masked(json.dumps(gate._asdict())))
        decide(client, name, candidate, "promoted" if passes else "declined", reason)
        if passes:
            now = aliases_of(client, name, asked)
            if now != before:
                raise VergenceError(
                    f"{asked}: its aliases have moved while it was measured, from {_told(before)} to {_told(now)}; "
                    "nothing was moved, give the command again"
                )
            make_champion(client, name, before)


def _told(aliases: "Aliases") -> str:
    return ", ".join(
        f"{name} {version}" for name, version in aliases._asdict().items() if version is not None
    )


def _dump(verdict: "Verdict | None") -> dict[str, Any] | None:
    return None if verdict is None else {**verdict._asdict(), "difference": verdict.difference}


def _print(done: Promotion, dry_run: bool) -> None:
    about = f"{done.name} version {done.version}" if done.version else done.name
    print(f"{about}: {'would be ' if dry_run and done.version else ''}{done.decision}: {done.reason}")
    print(
        f"champion {'would be' if dry_run else 'is'} version {done.champion}"
        f"{f', previous version {done.previous}' if done.previous not in (None, done.champion) else ''}"
    )
