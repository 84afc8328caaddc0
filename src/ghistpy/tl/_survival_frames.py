"""Results of cross-validated survival as long frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from ghistpy.cohort_stats.permutation import Permutations
    from ghistpy.cohort_stats.survival_cv import CrossValidation, Design


def survival_frames(
    found: CrossValidation, design: Design, features: np.ndarray, n_bootstraps: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Everything that a cross-validation says, as long frames."""
    import pandas as pd

    from ghistpy.cohort_stats.intervals import cross_validated_interval
    from ghistpy.cohort_stats.survival_cv import bootstrap_c_index

    shape = found.harrell.shape
    model, repeat, fold = (a.ravel() for a in np.indices(shape))
    names = np.array(found.models, dtype=object)
    per_fold = pd.DataFrame(
        {
            "model": names[model],
            "repeat": repeat,
            "fold": fold,
            "c_index": found.harrell.ravel(),
            "uno": found.uno.ravel(),
        }
    )
    samples = bootstrap_c_index(found, design.time, design.event, n_bootstraps=n_bootstraps, seed=seed)
    each = np.nanmean(found.harrell, axis=2)
    low, high = cross_validated_interval(each.mean(1), found.harrell, found.folds, samples)
    summary = pd.DataFrame(
        {
            "model": list(found.models),
            "c_index": each.mean(1),
            "ci_low": np.maximum(low, 0.0),
            "ci_high": np.minimum(high, 1.0),
            "uno": np.nanmean(found.uno, axis=(1, 2)),
            "sd_over_repeats": each.std(1, ddof=1) if shape[1] > 1 else np.zeros(shape[0]),
            "n_separated": found.separated.sum((1, 2)),
            "n_failed": found.failed.sum((1, 2)),
        }
    )
    return {
        "summary": summary,
        "c_index": per_fold,
        "differences": _differences(found, each.mean(1), samples),
        "selected": _selected(found, features),
    }


def _differences(found: CrossValidation, c: np.ndarray, samples: np.ndarray) -> pd.DataFrame:
    """Differences of C-indices in the same folds, on the same patients and bootstrap samples."""
    import pandas as pd

    from ghistpy.cohort_stats.intervals import cross_validated_interval

    models = found.models
    at = {name: i for i, name in enumerate(models)}
    pairs = [
        ("clinical+model", "clinical"),
        *(("model", name) for name in models if name not in ("model", "clinical+model")),
    ]
    rows = []
    for a, b in pairs:
        if a in at and b in at:
            i, j = at[a], at[b]
            difference = c[[i]] - c[[j]]
            low, high = cross_validated_interval(
                difference, found.harrell[[i]] - found.harrell[[j]], found.folds, samples[[i]] - samples[[j]]
            )
            rows.append((a, b, difference[0], low[0], high[0]))
    return pd.DataFrame(rows, columns=["model", "baseline", "difference", "ci_low", "ci_high"])


def _selected(found: CrossValidation, features: np.ndarray) -> pd.DataFrame:
    """How often each feature was selected, and with which sign."""
    import pandas as pd

    chosen = found.selected.ravel()
    frame = pd.DataFrame({"at": chosen, "coef": found.coef.ravel()})
    frame = frame[frame["at"] >= 0]
    grouped = frame.groupby("at")["coef"]
    out = pd.DataFrame(
        {
            "n_selected": grouped.size(),
            "frequency": grouped.size() / (found.selected.shape[0] * found.selected.shape[1]),
            "mean_coef": grouped.mean(),
            "share_positive": grouped.agg(lambda c: float((c > 0).mean())),
        }
    )
    out.insert(0, "feature", features[out.index.to_numpy(dtype=int)])
    return out.sort_values(["n_selected", "feature"], ascending=[False, True]).reset_index(drop=True)


def permutation_frame(tested: Permutations) -> pd.DataFrame:
    """Observed statistics beside their permutations."""
    import pandas as pd

    rows = []
    for name, null in tested.null.items():
        rows.append(
            {
                "statistic": name,
                "observed": tested.observed[name],
                "null_mean": float(np.nanmean(null)),
                "null_q95": float(np.nanquantile(null, 0.95)),
                "pval": tested.pvalue(name),
                "n_permutations": len(null),
                "n_repeats": tested.n_repeats,
            }
        )
    return pd.DataFrame(rows)
