"""Tools: what is learnt from slides, predicted for nuclei and computed on tables.

Verbs are imported when they are first used, so that ``import ghistpy.tl`` stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghistpy.tl.aggregate import aggregate_spots
    from ghistpy.tl.cluster_patients import cluster_patients
    from ghistpy.tl.cna import cna_association
    from ghistpy.tl.compare import compare_tables
    from ghistpy.tl.composition import composition
    from ghistpy.tl.differential_state import differential_state
    from ghistpy.tl.embed import embed
    from ghistpy.tl.evaluate import evaluate
    from ghistpy.tl.features import cohort_features
    from ghistpy.tl.fit import fit
    from ghistpy.tl.interaction import cell_type_interaction
    from ghistpy.tl.kaplan_meier import kaplan_meier, stratify_risk
    from ghistpy.tl.local_moran import local_moran
    from ghistpy.tl.neighborhood import neighborhood_correlation
    from ghistpy.tl.outcome import predict_outcome
    from ghistpy.tl.predict import predict_expression
    from ghistpy.tl.predict_risk import predict_risk
    from ghistpy.tl.ripley import ripley_l
    from ghistpy.tl.split import split
    from ghistpy.tl.survival import survival_cv
    from ghistpy.tl.survival_model import survival_fit
    from ghistpy.tl.svg import svg

__all__ = [
    "split",
    "fit",
    "predict_expression",
    "aggregate_spots",
    "evaluate",
    "compare_tables",
    "embed",
    "composition",
    "svg",
    "local_moran",
    "neighborhood_correlation",
    "cell_type_interaction",
    "ripley_l",
    "cohort_features",
    "differential_state",
    "cluster_patients",
    "predict_outcome",
    "survival_cv",
    "survival_fit",
    "predict_risk",
    "stratify_risk",
    "kaplan_meier",
    "cna_association",
]

_MODULE_OF = {
    "split": "split",
    "fit": "fit",
    "predict_expression": "predict",
    "aggregate_spots": "aggregate",
    "evaluate": "evaluate",
    "compare_tables": "compare",
    "embed": "embed",
    "composition": "composition",
    "svg": "svg",
    "local_moran": "local_moran",
    "neighborhood_correlation": "neighborhood",
    "cell_type_interaction": "interaction",
    "ripley_l": "ripley",
    "cohort_features": "features",
    "differential_state": "differential_state",
    "cluster_patients": "cluster_patients",
    "predict_outcome": "outcome",
    "survival_cv": "survival",
    "survival_fit": "survival_model",
    "predict_risk": "predict_risk",
    "stratify_risk": "kaplan_meier",
    "kaplan_meier": "kaplan_meier",
    "cna_association": "cna",
}


class _Verbs(ModuleType):
    """A package whose attribute ``fit`` is the verb, also after somebody imported ``tl.fit``, its file."""

    def __setattr__(self, name: str, value: Any) -> None:
        # the import system binds a submodule to its parent under its own name
        if isinstance(value, ModuleType) and name in _MODULE_OF:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Verbs


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {__all__}")
    verb = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = verb
    return verb


def __dir__() -> list[str]:
    return __all__
