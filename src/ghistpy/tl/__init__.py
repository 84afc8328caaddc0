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
    from ghistpy.tl.neighborhood import neighborhood_correlation
    from ghistpy.tl.outcome import predict_outcome
    from ghistpy.tl.predict import predict_expression
    from ghistpy.tl.predict_risk import predict_risk
    from ghistpy.tl.ripley import ripley_l
    from ghistpy.tl.split import split
    from ghistpy.tl.survival import survival_cv
    from ghistpy.tl.survival_model import survival_fit

__all__ = [
    "split",
    "fit",
    "predict_expression",
    "aggregate_spots",
    "evaluate",
    "composition",
    "neighborhood_correlation",
    "cell_type_interaction",
    "ripley_l",
    "embed",
    "compare_tables",
    "cna_association",
    "cohort_features",
]
__all__ += ["survival_cv", "survival_fit", "predict_risk", "stratify_risk", "kaplan_meier"]
__all__ += ["predict_outcome", "differential_state", "cluster_patients"]

_MODULE_OF = {
    "split": "split",
    "fit": "fit",
    "predict_expression": "predict",
    "aggregate_spots": "aggregate",
    "evaluate": "evaluate",
    "cna_association": "cna",
    "cohort_features": "features",
    "composition": "composition",
    "neighborhood_correlation": "neighborhood",
    "cell_type_interaction": "interaction",
    "ripley_l": "ripley",
    "embed": "embed",
    "compare_tables": "compare",
    "survival_cv": "survival",
    "survival_fit": "survival_model",
    "predict_risk": "predict_risk",
    "predict_outcome": "outcome",
    "differential_state": "differential_state",
    "cluster_patients": "cluster_patients",
    "stratify_risk": "kaplan_meier",
    "kaplan_meier": "kaplan_meier",
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
