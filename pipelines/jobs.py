"""`vergence jobs`: what runs on a cluster: list, status, logs, stop."""

import argparse
import json
import time

from vergence.pipelines.submit import add_place, follow, place, say
from vergence.platform.jobs.target import JobStatus

EPILOG = """\
examples:
  vergence jobs list --to ray --address https://ray.example.org:8265
  vergence jobs status first --to ray --json
  vergence jobs logs -f first --to ray            ends with the job, and with its exit code
  vergence jobs stop first --to ray               it commits first; the same submit goes on with it
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    verbs = parser.add_subparsers(dest="what", metavar="list|status|logs|stop", required=True)
    listing = verbs.add_parser("list", help="every job, oldest first")
    status = verbs.add_parser("status", help="the newest attempt of a job")
    logs = verbs.add_parser("logs", help="what a job prints")
    logs.add_argument("-f", "--follow", action="store_true", help="to its end; then with its exit code")
    stop = verbs.add_parser("stop", help="have it commit and end; waits for that")
    for subparser in (status, logs, stop):
        subparser.add_argument("name", metavar="NAME", help="of a job, or the id of an attempt")
    for subparser in (listing, status, stop):
        subparser.add_argument("--json", action="store_true", help="as JSON")
    for subparser in (listing, status, logs, stop):
        add_place(subparser)


def main(options: argparse.Namespace) -> int:
    target = place(options)
    match options.what:
        case "list":
            _print_list(target.jobs(), options.json)
        case "status":
            _print(target.status(options.name), options.json)
        case "logs" if options.follow:
            return follow(target, target.status(options.name).id, options.to)  # a namesake may come after it
        case "logs":
            for piece in target.logs(options.name, follow=False, says=say):
                print(piece, end="")
        case "stop":
            _print(target.stop(options.name, says=say), options.json)
    return 0


def _print_list(jobs: list[JobStatus], as_json: bool) -> None:
    if as_json:
        print(json.dumps([job.dump() for job in jobs], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "verb", "state", "begun", "took", "", box=None)
    for job in jobs:
        table.add_row(job.id, job.verb, job.state, _moment(job.begun_s), _took(job), job.reason)
    Console().print(table if jobs else "no jobs yet; start one with `vergence submit`")


def _print(job: JobStatus, as_json: bool) -> None:
    if as_json:
        print(json.dumps(job.dump(), indent=1))
    else:
        print(
            f"{job.id}: {job.verb}, {job.state}{': ' if job.reason else ''}{job.reason}; took {_took(job) or 'no time'}"
        )


def _moment(time_s: float | None) -> str:
    return "" if time_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(time_s))


def _took(job: JobStatus) -> str:
    if job.begun_s is None:
        return ""
    seconds = int((job.ended_s or time.time()) - job.begun_s)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
