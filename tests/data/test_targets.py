"""Instances equal what a loop over cells or spots says."""

from __future__ import annotations

import dataclasses

import numpy as np

from ghistpy.data.targets import instances_of


def test_cells(slide_maker):
    slide = slide_maker()
    targets, nuclei = slide.targets, slide.nuclei
    instances = instances_of(slide, 3)
    here = [i for i, cell in enumerate(targets.ids) if cell in nuclei.ids]
    assert instances.kept.tolist() == here
    assert len(instances) == len(here) == len(targets.ids) - 2
    for position, i in enumerate(here):
        row = int(np.flatnonzero(nuclei.ids == targets.ids[i])[0])
        assert instances.member[row] == position
        np.testing.assert_allclose(instances.values[position], np.log1p(targets.counts[i]), rtol=1e-6)
        np.testing.assert_allclose(instances.yx_um[position], nuclei.centroid_px[row] * 0.5)
        expected = np.zeros(3)
        if targets.cell_type[i] >= 0:
            expected[targets.cell_type[i]] = 1
        np.testing.assert_array_equal(instances.types[position], expected)
    assert (instances.member >= 0).sum() == len(here)
    np.testing.assert_array_equal(instances.gene_mask, targets.gene_mask)


def test_spots(slide_maker):
    slide = slide_maker(spots=True)
    targets, nuclei = slide.targets, slide.nuclei
    instances = instances_of(slide, 3)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(nuclei), 2))
    mean = instances.average() @ values
    for position, s in enumerate(instances.kept):
        rows = [int(np.flatnonzero(nuclei.ids == i)[0]) for i in targets.nucleus_id[targets.spot == s]]
        assert sorted(np.flatnonzero(instances.member == position)) == sorted(rows)
        expected = np.log1p(1e4 * targets.counts[s] / targets.total[s])
        np.testing.assert_allclose(instances.values[position], expected, rtol=1e-6)
        np.testing.assert_array_equal(instances.types[position], targets.proportions[s])
        np.testing.assert_allclose(mean[position], values[rows].mean(axis=0))
        np.testing.assert_allclose(instances.yx_um[position], nuclei.centroid_px[rows].mean(axis=0) * 0.5)
    assert set(instances.kept) == set(targets.spot) - {0}
    assert (targets.spot == 0).sum() > 1


def test_no_instance_is_left(slide_maker):
    slide = slide_maker()
    strangers = dataclasses.replace(slide.targets, ids=slide.targets.ids * 2 + 1)
    instances = instances_of(dataclasses.replace(slide, targets=strangers), 3)
    assert len(instances) == 0
    assert (instances.member == -1).all()
    assert instances.average().shape == (0, len(slide.nuclei))
