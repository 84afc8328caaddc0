"""A small slide with measured and predicted nuclei and spots, made by hand so that truth is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

TYPES = ["B", "T/NK", "Tumor"]
GENES = [f"G{i}" for i in range(8)]


def _labels(side: int, pitch: int) -> np.ndarray:
    """Square nuclei of 3 x 3 px on a grid, ids 10, 20, 30 …"""
    labels = np.zeros((side, side), dtype=np.int64)
    centres = np.arange(pitch // 2, side, pitch)
    y, x = (v.ravel() for v in np.meshgrid(centres, centres, indexing="ij"))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            labels[y + dy, x + dx] = (np.arange(len(y)) + 1) * 10
    return labels


def make_slide(*, side: int = 200, pitch: int = 8, mpp: float = 0.5, seed: int = 0, spots: bool = False):
    """Slide, predicted table (log scale) and the arrays that made them."""
    import geopandas as gpd
    from shapely import Point
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
    from spatialdata.transformations import Identity, Scale

    from ghistpy.io import make_table

    rng = np.random.default_rng(seed)
    labels = _labels(side, pitch)
    ids = np.unique(labels)[1:]
    rows, cols = np.nonzero(np.isin(labels, ids) & (labels != 0))
    order = np.argsort(labels[rows, cols], kind="stable").reshape(len(ids), 9)
    xy = (np.stack([cols[order].mean(1), rows[order].mean(1)], axis=1) + 0.5) * mpp
    n, g = len(ids), len(GENES)
    code = np.where(xy[:, 0] < side * mpp / 3, 0, rng.choice([1, 2], n, p=[0.4, 0.6]))
    profile = rng.gamma(2, 2, size=(3, g))
    state = rng.normal(size=(n, g)) * 0.5
    rate = profile[code] * np.exp(state)
    counts = rng.poisson(rate)
    guess = np.log1p(profile)[code] + 0.5 * state + rng.normal(size=(n, g)) * 0.1
    predicted_code = np.where(rng.random(n) < 0.8, code, rng.integers(0, 3, n))
    scale = {"microns": Scale([mpp, mpp], axes=("y", "x"))}
    morphology = np.column_stack([state[:, 0], code, rng.normal(size=n)]).astype(np.float32)
    measured = make_table(
        counts.astype(np.float32),
        GENES,
        region="nuclei",
        instance_key="cell_id",
        ids=ids,
        obs={"cell_type": np.array(TYPES)[code]},
        obsm={"spatial": xy},
        uns={"ghistpy": {"units": "counts"}},
    )
    predicted = make_table(
        np.maximum(guess, 0).astype(np.float32),
        GENES,
        region="nuclei",
        instance_key="cell_id",
        ids=ids,
        obs={
            "cell_type": np.array(TYPES)[predicted_code],
            "area_um2": np.full(n, 9 * mpp**2),
            "total": np.expm1(np.maximum(guess, 0)).sum(1) + 5,
        },
        obsm={"spatial": xy, "cell_type_proba": np.eye(3)[predicted_code], "morphology": morphology},
        uns={"ghistpy": {"units": "log1p(expected count)", "cell_types": TYPES, "supervision": "cells"}},
    )
    elements = {
        "images": {
            "he": Image2DModel.parse(
                rng.integers(150, 255, (3, side, side)).astype(np.uint8), dims=("c", "y", "x"), transformations=scale
            )
        },
        "labels": {"nuclei": Labels2DModel.parse(labels, dims=("y", "x"), transformations=scale)},
        "tables": {"measured": measured, "insilico": predicted},
    }
    if spots:
        pitch_um = side * mpp / 8
        grid = np.stack(np.meshgrid(*[(np.arange(8) + 0.5) * pitch_um] * 2, indexing="xy"), -1).reshape(-1, 2)
        radius = 0.4 * pitch_um
        frame = gpd.GeoDataFrame({"radius": np.full(len(grid), radius)}, geometry=[Point(p) for p in grid])
        frame.index = np.arange(len(grid)) + 100
        elements["shapes"] = {"spots": ShapesModel.parse(frame, transformations={"microns": Identity()})}
        inside = np.linalg.norm(grid[:, None] - xy[None], axis=2) <= radius
        spot_counts = rng.poisson(inside @ rate * 20)
        elements["tables"]["measured"] = make_table(
            spot_counts.astype(np.float32),
            GENES,
            region="spots",
            instance_key="spot_id",
            ids=frame.index.to_numpy(),
            obs={"total": spot_counts.sum(1) + 100.0},
            obsm={"spatial": grid},
        )
    sdata = SpatialData.init_from_elements(
        {k: v for kind in elements.values() for k, v in kind.items()}, attrs={"ghistpy": {"sample": "S1"}}
    )
    return SimpleNamespace(
        sdata=sdata, xy=xy, ids=ids, code=code, predicted_code=predicted_code, counts=counts, profile=profile
    )


@pytest.fixture
def cells():
    """A slide of nuclei with measured single-cell counts."""
    return make_slide()


@pytest.fixture
def spots():
    """A slide of nuclei with measured spots."""
    return make_slide(spots=True)


@pytest.fixture
def slide_maker():
    """The function behind :func:`cells` and :func:`spots`."""
    return make_slide


@pytest.fixture(scope="session")
def quick_fit():
    """``tl.fit`` with a small network, one epoch, on the CPU; ``mpp`` of the network."""
    import ghistpy as gp
    from ghistpy.models import GHISTConfig

    def fit(slides, *, mpp=0.5, **options):
        config = GHISTConfig(
            mpp=mpp, widths=(6, 8), embedding=8, decoder=8, random_features=16, context_um=(20.0,), tile_px=256
        )
        defaults = {"config": config, "accelerator": "cpu", "progress": False, "max_epochs": 1}
        return gp.tl.fit(slides, **{**defaults, **options})

    return fit


@pytest.fixture(scope="session")
def slide_copy():
    """(slide, image=, labels=, table=, mpp=, attrs=) -> a new slide with some elements replaced."""
    return copy_of


def copy_of(slide, *, image=None, labels=None, table=None, mpp=0.5, attrs=None):
    """A new slide with some elements replaced."""
    from spatialdata import SpatialData

    from ghistpy.io.elements import image_element, labels_element

    return SpatialData(
        images={"he": slide["he"] if image is None else image_element(image, mpp)},
        labels={"nuclei": slide["nuclei"] if labels is None else labels_element(labels, mpp)},
        tables={"measured": slide["measured"].copy() if table is None else table},
        attrs=slide.attrs if attrs is None else attrs,
    )


@pytest.fixture(scope="session")
def slide_pixels():
    """Slide -> (3, y, x) array."""
    return lambda slide: np.asarray(slide["he"].data.compute())


@pytest.fixture(scope="session")
def spot_slide_maker():
    """(seed, n_cells=) -> slide with spots, table of its cells, number of cells per spot."""
    return spot_slide


def spot_slide(seed, n_cells=900):
    """Circles of 50 µm whose counts are the sums of the cells in them."""
    import geopandas as gpd
    import pandas as pd
    from shapely import Point
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    import ghistpy as gp

    slide = gp.datasets.simulate_slide(n_cells=n_cells, n_genes=10, seed=seed, unpredictable_fraction=0.3)
    cells = slide["measured"]
    xy, side = cells.obsm["spatial"], cells.obsm["spatial"].max()
    steps = np.arange(25, side, 50.0)
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    inside = (((xy[None] - centres[:, None]) ** 2).sum(axis=2) <= 25**2).astype(float)
    types = pd.get_dummies(cells.obs["cell_type"]).to_numpy(float)
    number = inside.sum(axis=1, keepdims=True)
    circles = gpd.GeoDataFrame({"radius": np.full(len(centres), 25.0)}, geometry=[Point(*c) for c in centres])
    circles.index = np.arange(len(centres)) + 10
    slide["spots"] = ShapesModel.parse(circles, transformations={"microns": Identity()})
    counts = inside @ cells.X.toarray()
    table = gp.io.make_table(
        counts.astype(np.float32),
        cells.var_names,
        region="spots",
        instance_key="spot_id",
        ids=circles.index.to_numpy(),
        obs={"total": counts.sum(axis=1)},
        obsm={"spatial": centres, "shares": inside @ types / np.maximum(number, 1)},
        uns={"shares_cell_types": list(cells.obs["cell_type"].cat.categories)},
    )
    del slide.tables["measured"]
    slide["measured"] = table
    slide.attrs["ghistpy"]["spot_diameter_um"] = 50.0
    return slide, cells, number.ravel()
