"""What a search would do, and how it stands: plain values, and as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vergence.platform.cluster.capacity import Need
from vergence.platform.search.config import SearchConfig
from vergence.platform.search.trials import Trial, least_loss, name_of, winner

if TYPE_CHECKING:
    from vergence.pipelines.advance import Planned
    from vergence.pipelines.search import Search


class Plan(NamedTuple):
    """What a search would do."""

    search: "Search"
    planned: "Planned"  # of its first trial
    concurrent: int
    need: Need
    hours: float | None

    def dump(self) -> dict[str, Any]:
        config = self.search.config
        return {
            "name": self.search.name,
            "space": {path: str(domain) for path, domain in config.domains.items()},
            "objective": config.objective,
            "direction": config.direction,
            "algorithm": config.algorithm,
            "scheduler": config.scheduler.name,
            "rungs": config.rungs,
            "trials": config.num_trials,
            "concurrent": self.concurrent,
            "cpus": self.need.cpus,
            "epochs_at_most": config.epochs_at_most,
            "epochs_at_least": config.epochs_at_least,
            "epochs_of_all_trials_in_full": config.num_trials * config.budget.epochs,
            "hours": None if self.hours is None else round(self.hours, 3),
        }


class SearchResult(NamedTuple):
    """How a search stands: its trials, best first."""

    name: str
    config: SearchConfig
    status: Literal["finished", "interrupted"]
    trials: list[Trial]
    folder: Path

    @property
    def winner(self) -> Trial | None:
        return winner(self.trials, self.config.direction)

    @property
    def least_loss(self) -> Trial | None:
        """What the lowest loss would have chosen."""
        return least_loss(self.trials, self.config.direction)

    @property
    def epochs(self) -> int:
        """Of all trials together."""
        return sum(trial.epochs for trial in self.trials)

    def dump(self) -> dict[str, Any]:
        def row(trial: Trial | None) -> dict[str, Any] | None:
            if trial is None:
                return None
            about = {"run": name_of(self.name, trial.number), "epochs": trial.epochs, "score": trial.score}
            return {
                **trial.model_dump(mode="json"),
                **about,
                "loss": trial.loss,
                "seconds": round(trial.seconds, 1),
            }

        return {
            "schema": 1,
            "name": self.name,
            "status": self.status,
            "objective": self.config.objective,
            "direction": self.config.direction,
            "epochs": self.epochs,
            "epochs_of_all_trials_in_full": self.config.num_trials * self.config.budget.epochs,
            "seconds": round(sum(trial.seconds for trial in self.trials), 1),
            "winner": row(self.winner),
            "least_loss": row(self.least_loss),
            "trials": [row(trial) for trial in self.trials],
        }
