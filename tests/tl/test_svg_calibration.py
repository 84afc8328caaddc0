"""Rejections of the verb svg without a pattern, at 1, 5 and 10 %: where they hold and where, as documented, not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.spatial.distance import cdist

import ghistpy as gp

LEVELS = (0.01, 0.05, 0.1)
POSITIVE = (5, 20, 80, 400, 1500)
METHODS = {"moran": {"n_perms": 199}, "geary": {"method": "geary", "n_perms": 199}, "sparkx": {"method": "sparkx"}}


def rejected(table, **options):
    """P-values of all genes."""
    gp.tl.svg(table, progress=False, **options)
    return table.var["svg_pval"].to_numpy()


def assert_level(pval, label="", conservative=False):
    """Within 4 binomial standard deviations of each level, or below it."""
    pval = pval[~np.isnan(pval)]
    for level in LEVELS:
        rate, sd = (pval <= level).mean(), np.sqrt(level * (1 - level) / len(pval))
        assert rate <= level + 4 * sd, (label, level, rate)
        assert conservative or rate >= level - 4 * sd, (label, level, rate)


class Slide:
    """1,500 cells: four types in patches of 50 µm, depth as smooth."""

    def __init__(self, seed=0, n=1500):
        self.rng = rng = np.random.default_rng(seed)
        self.xy = rng.uniform(0, 600, (n, 2))
        self.near = np.exp(-(cdist(self.xy, self.xy) ** 2) / (2 * 50**2))
        maps = self.near @ rng.normal(size=(n, 5))
        maps = (maps - maps.mean(axis=0)) / maps.std(axis=0)
        self.types = (maps[:, :4] + 0.3 * rng.normal(size=(n, 4))).argmax(axis=1)
        self.depth = np.exp(0.5 * maps[:, 4])

    def rate(self, n_genes, mean):
        """Genes (n, n_genes) that follow nothing but type and depth."""
        rate = self.rng.gamma(1, 1, (4, n_genes))[self.types] * self.depth[:, None]
        return mean * rate / rate.mean(axis=0)

    def table(self, rate, *, total=300, types=None):
        """Counts of such genes; the depth of a cell is known from ``total`` counts."""
        table = AnnData(self.rng.poisson(rate).astype(np.float32))
        table.obs["total"] = self.rng.poisson(total * self.depth)
        table.obs["cell_type"] = pd.Categorical((self.types if types is None else types).astype(str))
        table.obsm["spatial"] = self.xy
        return table


@pytest.mark.parametrize("method", METHODS)
def test_within_type_by_detection_rate(method):
    """Given types and depth as they are; 1,500 = about all cells positive, at 10 counts a cell."""
    slide = Slide()
    means = {k: 10.0 if k == 1500 else k / 1500 for k in POSITIVE}
    table = slide.table(np.hstack([slide.rate(200, mean) for mean in means.values()]))
    pval = rejected(table, null="within_type", **METHODS[method]).reshape(len(POSITIVE), 200)
    for n_positive, part in zip(POSITIVE, pval, strict=True):
        assert_level(part, n_positive, conservative=n_positive < 80)
    assert table.uns["svg"]["transform"] == "log1p"
    # the same genes under the null 'values', which types and smooth depth break
    pval = rejected(table, **METHODS[method]).reshape(len(POSITIVE), 200)
    assert (pval[3:] <= 0.05).mean() > 0.7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mean", [2, 10, 40])
def test_high_genes_hold_their_level_as_log1p_only(method, mean):
    slide = Slide(seed=1)
    table = slide.table(slide.rate(300, mean), total=3000)
    assert_level(rejected(table, null="within_type", **METHODS[method]), conservative=True)
    # a layer that is not made of counts is taken as it is: on the scale of counts depth multiplies
    table.layers["scaled"] = table.X + 0.5
    raw = rejected(table, null="within_type", layer="scaled", **METHODS[method])
    assert table.uns["svg"]["transform"] == "none"
    if method == "sparkx" and mean == 40:
        assert (raw <= 0.05).mean() > 0.2


@pytest.mark.parametrize("method", METHODS)
def test_must_fail_where_depth_is_known_badly(method):
    """Documented: a gene of 10 counts in cells whose depth is known from 60."""
    slide = Slide(seed=2)
    pval = rejected(slide.table(slide.rate(300, 10), total=60), null="within_type", **METHODS[method])
    assert (pval <= 0.05).mean() > 0.09


@pytest.mark.parametrize("method", METHODS)
def test_must_fail_where_a_fifth_of_the_types_is_wrong(method):
    slide = Slide(seed=3)
    wrong = np.where(slide.rng.random(1500) < 0.2, slide.rng.integers(0, 4, 1500), slide.types)
    pval = rejected(slide.table(slide.rate(200, 2), types=wrong), null="within_type", **METHODS[method])
    assert (pval <= 0.05).mean() > 0.3


@pytest.mark.parametrize("null", ["values", "within_type"])
@pytest.mark.parametrize("method", METHODS)
def test_must_fail_through_a_blur(method, null):
    """Spill-over of 15 µm of genes without any pattern."""
    slide = Slide(seed=4)
    spill = np.exp(-(cdist(slide.xy, slide.xy) ** 2) / (2 * 15**2))
    noise = np.exp(slide.rng.normal(size=(1500, 100)))
    table = slide.table(spill / spill.sum(axis=1, keepdims=True) @ noise)
    table.layers["blurred"] = spill @ table.X
    pval = rejected(table, layer="blurred", null=null, **METHODS[method])
    assert (pval <= 0.05).mean() > (0.2 if method == "sparkx" else 0.9)


@pytest.mark.parametrize("method", METHODS)
def test_smooth_depth_needs_log_depth(method):
    slide = Slide(seed=5)
    table = slide.table(np.repeat(slide.depth[:, None], 400, axis=1) * 1.5)
    assert (rejected(table, **METHODS[method]) <= 0.05).mean() > 0.8
    assert_level(rejected(table, log_depth=True, **METHODS[method]), conservative=True)
    assert (table.uns["svg"]["depth"], table.uns["svg"]["transform"]) == ("obs['total']", "log1p")
