"""Vergence from Python: the verbs as functions, with typed results; their errors are exceptions.

    from vergence.pipelines import evaluate, pretrain
    result = pretrain("simclr-cifar10", ['data.train="cifar10/train-*.tar"'], name="first")

Nothing is imported before it is used: `vergence --help` goes through here, with the current folder still searched.
"""

import importlib
import sys
from types import ModuleType

TYPE_CHECKING = False  # typing's own costs its import
if TYPE_CHECKING:
    from vergence.pipelines.advance import Planned, RunResult
    from vergence.pipelines.embed import embed
    from vergence.pipelines.evaluate import evaluate
    from vergence.pipelines.export import export
    from vergence.pipelines.pretrain import pretrain
    from vergence.pipelines.promote import Promotion, promote, rollback
    from vergence.pipelines.recipe import Recipe, load_recipe
    from vergence.pipelines.search_result import SearchResult
    from vergence.pipelines.tune import tune
    from vergence.platform.encoders.encoder import LoadedEncoder
    from vergence.platform.encoders.load import load_encoder
    from vergence.platform.encoders.rebuild import timm_backbone
    from vergence.platform.errors import UserError, VergenceError
    from vergence.platform.evaluate.report import Report
    from vergence.platform.runs.records import FirstStep, Metrics, Monitored, Note
    from vergence.platform.runs.stop import Stop

_HOMES = {
    "FirstStep": "vergence.platform.runs.records",
    "LoadedEncoder": "vergence.platform.encoders.encoder",
    "Metrics": "vergence.platform.runs.records",
    "Monitored": "vergence.platform.runs.records",
    "Note": "vergence.platform.runs.records",
    "Planned": "vergence.pipelines.advance",
    "Promotion": "vergence.pipelines.promote",
    "Recipe": "vergence.pipelines.recipe",
    "Report": "vergence.platform.evaluate.report",
    "RunResult": "vergence.pipelines.advance",
    "SearchResult": "vergence.pipelines.search_result",
    "Stop": "vergence.platform.runs.stop",
    "UserError": "vergence.platform.errors",
    "VergenceError": "vergence.platform.errors",
    "embed": "vergence.pipelines.embed",
    "evaluate": "vergence.pipelines.evaluate",
    "export": "vergence.pipelines.export",
    "load_encoder": "vergence.platform.encoders.load",
    "load_recipe": "vergence.pipelines.recipe",
    "pretrain": "vergence.pipelines.pretrain",
    "promote": "vergence.pipelines.promote",
    "rollback": "vergence.pipelines.promote",
    "timm_backbone": "vergence.platform.encoders.rebuild",
    "tune": "vergence.pipelines.tune",
}

__all__ = [
    "FirstStep",
    "LoadedEncoder",
    "Metrics",
    "Monitored",
    "Note",
    "Planned",
    "Promotion",
    "Recipe",
    "Report",
    "RunResult",
    "SearchResult",
    "Stop",
    "UserError",
    "VergenceError",
    "embed",
    "evaluate",
    "export",
    "load_encoder",
    "load_recipe",
    "pretrain",
    "promote",
    "rollback",
    "timm_backbone",
    "tune",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"vergence.pipelines has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


class _Door(ModuleType):
    """Python binds an imported submodule as an attribute here; a function of the same name stays what the name means."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
