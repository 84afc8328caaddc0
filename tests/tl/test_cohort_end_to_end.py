"""From slides of patients to survival and state: what was planted is found, and nothing where nothing was."""

import numpy as np
import pytest

import ghistpy as gp


@pytest.mark.parametrize("effect", [2.0, 0.0])
def test_planted_effects_are_found_and_nulls_are_not(effect):
    """T/NK cells lower the hazard and malignant cells mark state B; every slide is simulated and counted."""
    truth, cohort = gp.datasets.simulate_cohort(n_patients=40, slides=True, n_cells=120, panel=6, effect=effect)
    features = gp.tl.cohort_features(cohort, table_key="measured", kinds=["proportion_logit"], progress=False)
    assert features.obs_names.tolist() == truth.obs_names.tolist()
    gp.tl.differential_state(features, groupby="state", kind="proportion_logit", reference="A")
    state = gp.get.differential_state(features).set_index("gene")
    gp.tl.survival_cv(
        features,
        time_key="time",
        event_key="event",
        time_unit="months",
        kind="proportion_logit",
        n_features=2,
        n_repeats=3,
        n_permutations=19,
        permutation_repeats=1,
        progress=False,
    )
    chosen = gp.get.survival(features, part="selected").set_index("feature")
    tested = gp.get.survival(features, part="permutation").set_index("statistic")["pval"]
    if effect:
        assert state["pval"].idxmin() == "Malignant"
        assert state.loc["Malignant", "pval_adj_global"] < 0.01
        assert state.loc["Malignant", "log_fc"] > 0
        assert chosen["frequency"].idxmax() == "proportion_logit--T/NK"
        assert chosen.loc["proportion_logit--T/NK", "mean_coef"] < 0
        assert tested["c_index"] == pytest.approx(0.05)
    else:
        assert (state["pval_adj_global"] > 0.05).all()
        assert tested["c_index"] > 0.05
    assert np.isfinite(features.obs["risk"]).all()
