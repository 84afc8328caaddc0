"""Maps: what is drawn, where and in which colour."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba

import ghistpy as gp
from ghistpy.pl import _draw, _image
from ghistpy.pl._style import OKABE_ITO, PALETTE, scale_bar, type_colours


def _circles(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


@pytest.fixture
def far(monkeypatch):
    """Views count as far away, so circles are drawn."""
    monkeypatch.setattr(_draw, "_SHAPES_BELOW_PX", 0)


def test_slide_by_gene_from_afar(evaluated, far):
    table = evaluated["insilico"]
    gene = table.var_names[3]
    ax = gp.pl.slide(evaluated, gene)
    drawn = _circles(ax)
    order = np.argsort(table.X[:, 3], kind="stable")
    np.testing.assert_allclose(drawn.get_offsets(), table.obsm["spatial"][order])
    np.testing.assert_allclose(drawn.get_array(), table.X[order, 3])
    assert drawn.norm.vmax == pytest.approx(np.percentile(table.X[:, 3], 99), rel=1e-5)
    assert drawn.norm.vmin == 0
    assert drawn.get_rasterized()
    diameter = 2 * np.sqrt(table.obs["area_um2"].to_numpy()[order] / np.pi)
    np.testing.assert_allclose(2 * drawn._widths, diameter, rtol=1e-6)
    side = evaluated["he"].sizes["x"] * 0.5
    assert ax.get_xlim() == (0, side)
    assert ax.get_ylim() == (side, 0)  # y runs down
    assert ax.figure.axes[1].get_ylabel() == "log1p(expected count)"
    assert (ax.get_title(), ax.title.get_fontstyle()) == (gene, "italic")


def test_counts_are_drawn_as_logarithms(evaluated, far):
    gene = evaluated["measured"].var_names[2]
    ax = gp.pl.slide(evaluated, gene, table_key="measured")
    counts = evaluated["measured"].X[:, 2].toarray().ravel().astype(float)
    np.testing.assert_allclose(_circles(ax).get_array(), np.sort(np.log1p(counts)))
    assert ax.figure.axes[1].get_ylabel() == "log1p(count)"


def test_slide_by_type_and_legend(evaluated, far):
    ax = gp.pl.slide(evaluated, "cell_type", table_key="measured")
    labels = evaluated["measured"].obs["cell_type"]
    colours = type_colours(labels.cat.categories)
    want = np.array([to_rgba(colours[t]) for t in labels])
    np.testing.assert_allclose(_circles(ax).get_facecolors(), want)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == sorted(labels.cat.categories)


@pytest.mark.parametrize("longer", ["", " cells with a name that is long"])
@pytest.mark.parametrize("window", [None, (0, 0, 200, 60), (0, 0, 60, 200)])
def test_legends_of_maps_lie_on_the_page(evaluated, far, longer, window):
    labels = evaluated["measured"].obs["cell_type"]
    evaluated["measured"].obs["cell_type"] = labels.cat.rename_categories(lambda name: name + longer)
    ax = gp.pl.slide(evaluated, "cell_type", table_key="measured", window_um=window)
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert ax.get_window_extent().x1 < legend.x0
    assert legend.x1 <= ax.figure.bbox.x1
    assert legend.y0 >= 0


def test_unknown_types_are_white_and_in_the_legend(evaluated, far):
    obs = evaluated["insilico"].obs
    obs["cell_type"] = obs["cell_type"].astype(object).where(np.arange(400) > 0, None)
    ax = gp.pl.slide(evaluated, "cell_type")
    assert _circles(ax).get_facecolors()[0].tolist() == [1, 1, 1, 1]
    assert ax.get_legend().get_texts()[-1].get_text() == "unknown"


def test_near_view_shows_the_segmented_shapes(evaluated):
    window = (20.0, 30.0, 120.0, 110.0)
    table = evaluated["insilico"]
    ax = gp.pl.slide(evaluated, "cell_type", window_um=window)
    nuclei = next(i for i in ax.images if i.get_gid() == "nuclei")
    labels = np.asarray(evaluated["nuclei"])[60:220, 40:240]
    picture = np.asarray(nuclei.get_array())
    assert picture.shape == (160, 200, 4)
    assert (picture[labels == 0] == 0).all()  # background stays transparent
    colours = type_colours(sorted(set(table.obs["cell_type"])))
    types = dict(zip(table.obs["cell_id"], table.obs["cell_type"], strict=True))
    for label in np.unique(labels)[1:]:
        np.testing.assert_allclose(np.unique(picture[labels == label], axis=0), [to_rgba(colours[types[label]])])
    assert tuple(nuclei.get_extent()) == (20, 120, 110, 30)
    assert not [c for c in ax.collections if isinstance(c, EllipseCollection)]
    outlines = gp.pl.slide(evaluated, window_um=window).images[1]
    assert outlines.get_gid() == "outlines"
    assert 0 < (np.asarray(outlines.get_array())[..., 3] > 0).sum() < (labels > 0).sum()


def test_window_keeps_only_what_reaches_into_it(evaluated, far):
    ax = gp.pl.slide(evaluated, window_um=(20, 30, 120, 110))
    xy = np.asarray(_circles(ax).get_offsets())
    assert 0 < len(xy) < 400
    assert (xy > np.array([20, 30]) - 10).all()
    assert (xy < np.array([120, 110]) + 10).all()
    assert ax.get_xlim() == (20, 120)


def test_spots_are_drawn_as_their_circles(evaluated):
    ax = gp.pl.slide(evaluated, evaluated["insilico"].var_names[0], table_key="insilico_spots")
    drawn = _circles(ax)
    np.testing.assert_allclose(2 * drawn._widths, 2 * evaluated["spots"]["radius"].iloc[0])
    values = evaluated["insilico_spots"].X[:, 0]
    np.testing.assert_allclose(np.sort(drawn.get_array()), np.sort(values))


def test_given_axes_numeric_column_and_no_image(evaluated, far):
    _, ax = plt.subplots()
    assert gp.pl.slide(evaluated, "area_um2", image_key=None, ax=ax, vmax=50) is ax
    assert not ax.images
    assert _circles(ax).norm.vmax == 50


def test_many_nuclei_are_sampled_reproducibly(evaluated, far, monkeypatch):
    monkeypatch.setattr(_draw, "MAX_CIRCLES", 50)
    first, second = (np.asarray(_circles(gp.pl.slide(evaluated)).get_offsets()) for _ in range(2))
    assert len(first) == 50
    np.testing.assert_array_equal(first, second)


def test_compare_cells_share_one_stated_scale(evaluated):
    genes = list(evaluated["insilico"].var_names[:2])
    axes = gp.pl.compare_genes(evaluated, genes)
    assert axes.shape == (2, 2)
    assert [a.get_title() for a in axes[0]] == ["measured cells", "predicted nuclei"]
    assert axes[1, 0].get_ylabel() == genes[1]
    truth = np.log1p(evaluated["measured"].X[:, 0].toarray().ravel())
    images = [next(i for i in a.images if i.get_gid() == "nuclei") for a in axes[0]]
    labels = np.asarray(evaluated["nuclei"])
    norm = plt.Normalize(*np.percentile(truth, [1, 99]))
    predicted = evaluated["insilico"].X[:, 0].astype(float)
    for image, values in zip(images, (truth, predicted), strict=True):
        picture, cell = np.asarray(image.get_array()), 17
        want = plt.get_cmap("viridis")(norm(values[cell - 1]))
        np.testing.assert_allclose(picture[labels == cell][0], want, atol=1e-6)
    bars = [a.get_ylabel() for a in axes[0, 0].figure.axes if a.get_label() == "<colorbar>"]
    assert bars == ["log1p(count)"] * 2
    frame = gp.get.evaluation(evaluated)
    stored = frame.query("level == 'gene' and method == 'model' and metric == 'pearson'").set_index("name")["value"]
    assert f"r = {stored[genes[1]]:.2f}" in [t.get_text() for t in axes[1, 1].texts]


def test_compare_spots_with_predicted_spots_and_nuclei(evaluated):
    gene = evaluated["insilico"].var_names[1]
    axes = gp.pl.compare_genes(evaluated, gene, measured="spots_measured")
    titles = [a.get_title() for a in axes[0]]
    assert titles == ["measured spots", "predicted, summed to spots", "predicted nuclei"]
    counts = evaluated["spots_measured"].X
    truth = np.log1p(1e4 * counts[:, 1] / counts.sum(1))
    summed = evaluated["insilico_spots"]
    share = np.expm1(summed.X[:, 1].astype(float)) / summed.obs["total"].to_numpy()
    first, second = (_circles(a) for a in axes[0, :2])
    np.testing.assert_allclose(np.sort(first.get_array()), np.sort(truth), rtol=1e-6)
    np.testing.assert_allclose(np.sort(second.get_array()), np.sort(np.log1p(1e4 * share)), rtol=1e-5)
    assert (first.norm.vmin, first.norm.vmax) == (second.norm.vmin, second.norm.vmax)
    assert (first.norm.vmin, first.norm.vmax) == pytest.approx(tuple(np.percentile(truth, [1, 99])))
    bars = [a.get_ylabel() for a in axes[0, 0].figure.axes if a.get_label() == "<colorbar>"]
    assert bars == ["log1p(10⁴ · count / total)", "log1p(expected count)"]
    assert gp.pl.compare_genes(evaluated, gene, measured="spots_measured", aggregated=None).shape == (1, 2)


def test_clear_errors(evaluated):
    gene = evaluated["insilico"].var_names[0]
    with pytest.raises(ValueError, match=rf"did you mean '{gene}'\?"):
        gp.pl.slide(evaluated, gene.lower())
    with pytest.raises(ValueError, match="color='XYZ' is neither a gene"):
        gp.pl.slide(evaluated, "XYZ")
    with pytest.raises(ValueError, match="table_key='x' is not among the tables"):
        gp.pl.slide(evaluated, table_key="x")
    with pytest.raises(ValueError, match="window_um=.*overlap the image"):
        gp.pl.slide(evaluated, gene, window_um=(-50, -50, -10, -10))
    with pytest.raises(ValueError, match=r"genes: \['XYZ'\]"):
        gp.pl.compare_genes(evaluated, ["XYZ"])
    del evaluated["insilico"].obsm["spatial"]
    with pytest.raises(ValueError, match=r"table_key='insilico' has no obsm\['spatial'\]"):
        gp.pl.slide(evaluated, gene)


def test_table_without_rows(evaluated):
    genes, none = evaluated["insilico"].var_names, np.zeros(0, np.int64)
    evaluated.tables["insilico"] = gp.io.make_table(
        np.zeros((0, 24), np.float32),
        genes,
        region="nuclei",
        instance_key="cell_id",
        ids=none,
        obsm={"spatial": np.zeros((0, 2))},
    )
    ax = gp.pl.slide(evaluated, genes[0])
    assert len(ax.images) == 1
    assert len(_circles(ax).get_offsets()) == 0


def test_picture_is_the_mean_of_its_pixels_and_reads_in_bands(evaluated, monkeypatch):
    image = np.asarray(evaluated["he"])
    whole = _image.read_picture(evaluated, "he", None, max_px=10_000)
    np.testing.assert_array_equal(whole.rgb, image.transpose(1, 2, 0))
    reads = []
    original = _image._pooled

    class Spy:
        def __init__(self, source):
            self.source, self.shape, self.dtype, self.chunks = source, source.shape, source.dtype, source.chunks

        def read(self, window):
            reads.append(window)
            return self.source.read(window)

    monkeypatch.setattr(_image, "_pooled", lambda source, window, stride: original(Spy(source), window, stride))
    monkeypatch.setattr(_image, "_BAND_PIXELS", 20_000)
    small = _image.read_picture(evaluated, "he", None, max_px=100)
    stride = -(-image.shape[1] // 100)
    h, w = image.shape[1] // stride, image.shape[2] // stride
    blocks = image[:, : h * stride, : w * stride].reshape(3, h, stride, w, stride).mean(axis=(2, 4))
    np.testing.assert_allclose(small.rgb.transpose(2, 0, 1), blocks, atol=0.51)
    assert len(reads) > 3
    assert max(r.shape[0] * r.shape[1] for r in reads) <= 20_000 + image.shape[2] * stride
    assert small.extent_um == (0, 0, w * stride * 0.5, h * stride * 0.5)


def test_picture_uses_the_coarsest_level_that_suffices(tmp_path):
    from spatialdata import SpatialData, read_zarr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 512, 768)).astype(np.uint8)
    element = Image2DModel.parse(
        image,
        dims=("c", "y", "x"),
        scale_factors=[2, 2],
        transformations={"microns": Scale([0.5, 0.5], axes=("y", "x"))},
    )
    lazy = SpatialData.init_from_elements({"he": element})
    lazy.write(tmp_path / "s.zarr")
    sdata = read_zarr(tmp_path / "s.zarr")
    coarse = np.asarray(next(iter(sdata["he"]["scale2"].data_vars.values())))
    got = _image.read_picture(sdata, "he", None, max_px=192)
    np.testing.assert_array_equal(got.rgb, coarse.transpose(1, 2, 0))
    assert got.extent_um == (0, 0, 384, 256)
    fine = _image.read_picture(sdata, "he", (10, 20, 60, 70), max_px=192)
    np.testing.assert_array_equal(fine.rgb, image[:, 40:140, 20:120].transpose(1, 2, 0))
    # levels that exist only as a computation from the full resolution are passed over
    blocks = image.reshape(3, 128, 4, 192, 4).mean(axis=(2, 4))
    pooled = _image.read_picture(lazy, "he", None, max_px=192)
    np.testing.assert_array_equal(pooled.rgb.transpose(2, 0, 1), np.rint(blocks))


def test_scale_bar_is_round_and_to_scale():
    for width, length, text in ((640, 100, "100 µm"), (6400, 1000, "1 mm"), (55, 10, "10 µm"), (1200, 200, "200 µm")):
        _, ax = plt.subplots()
        ax.set_xlim(0, width)
        scale_bar(ax, width)
        bar = next(line for line in ax.lines if line.get_gid() == "scale")
        assert np.ptp(bar.get_xdata()) == pytest.approx(length)
        assert text in [t.get_text() for t in ax.texts]


def _seen_without(cones, rgb):
    """Colours (n, 3) as seen without red or green cones (Machado 2009, severity 1), in CIELAB."""
    from skimage.color import rgb2lab

    matrix = {
        "none": np.eye(3),
        "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    }[cones]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(matrix)
    linear = np.clip(linear, 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)[None])[0]


@pytest.mark.parametrize(("cones", "least"), [("none", 17.0), ("green", 9.5), ("red", 10.5)])
def test_forty_types_keep_apart_with_every_common_vision(cones, least):
    colours = type_colours([f"t{i:02d}" for i in range(40)])
    lab = _seen_without(cones, np.array(list(colours.values()), dtype=float))
    between = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(40, 1)]
    assert between.min() > least
    np.testing.assert_allclose(colours["t00"], to_rgba(OKABE_ITO[0])[:3])
    assert len(PALETTE) == 40
    assert len(set(type_colours(range(100)).values())) == 100


def test_a_type_has_one_colour_whatever_the_order_of_the_categories():
    assert type_colours(["Stroma", "B", "T"]) == type_colours(["T", "Stroma", "B"])
    assert list(type_colours(["Stroma", "B", "T"])) == ["Stroma", "B", "T"]
    assert type_colours(["B", "T"], known=["Stroma"])["T"] == type_colours(["T", "Stroma", "B"])["T"]


def test_a_type_that_one_table_lacks_moves_no_colour(evaluated, far):
    table = evaluated["insilico"]
    drawn = {}
    for key in ("measured", "insilico"):
        if key == "insilico":
            evaluated.tables[key] = table[table.obs["cell_type"].astype(str) != "B"].copy()
        legend = gp.pl.slide(evaluated, "cell_type", table_key=key).get_legend()
        drawn[key] = {t.get_text(): h.get_color() for t, h in zip(legend.texts, legend.legend_handles, strict=True)}
    assert "B" not in drawn["insilico"]
    assert drawn["insilico"].items() <= drawn["measured"].items()


def test_legends_follow_ordered_categories_and_else_the_alphabet():
    from ghistpy.pl._style import groups, levels

    stage = pd.Series(pd.Categorical(["II", "I", "X"], categories=["X", "I", "II"], ordered=True))
    assert levels(stage) == groups(stage) == ["X", "I", "II"]
    cluster = pd.Series(pd.Categorical(["10", "2"], categories=["10", "2", "3"]))
    assert levels(cluster) == ["2", "10"]
    assert groups(cluster) == ["10", "2"]
    assert groups(pd.Series(["s10", "s9", None])) == ["s9", "s10"]


def test_slides_are_never_drawn_on_top_of_each_other(evaluated):
    """A table of two slides has a place in no map; one slide of it has."""
    both = evaluated["measured"].copy()
    both.obs["region"] = np.where(np.arange(both.n_obs) % 2, "nuclei", "nuclei_b")
    both.uns["spatialdata_attrs"]["region"] = ["nuclei", "nuclei_b"]
    gene = both.var_names[0]
    gp.tl.svg(both, n_perms=9, progress=False)
    gp.tl.local_moran(both, gene, n_perms=9)
    one = both[both.obs["region"] == "nuclei"]
    refused = r"2 elements \(slides\), \['nuclei', 'nuclei_b'\].*table\[table.obs\['region'\] == 'nuclei'\]"
    for draw in (gp.pl.svg, gp.pl.local_moran):
        with pytest.raises(ValueError, match=refused):
            draw(both)
        draw(one)
    both.obsm["X_umap"] = both.obsm["spatial"]
    gp.pl.embedding(both)  # has no slides


def test_one_slide_of_several_is_drawn_as_it_was_segmented(evaluated):
    table = evaluated["measured"]
    gene = table.var_names[0]
    evaluated.labels["nuclei_b"] = evaluated["nuclei"]
    table.obs["region"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "nuclei", "nuclei_b"))
    table.uns["spatialdata_attrs"]["region"] = ["nuclei", "nuclei_b"]
    for draw, keys in ((gp.pl.slide, {"table_key": "measured"}), (gp.pl.marker_maps, {"table_keys": "measured"})):
        with pytest.raises(ValueError, match="draw one at a time"):
            draw(evaluated, gene, **keys)
    one = table[table.obs["region"] == "nuclei"].copy()
    one.uns["spatialdata_attrs"]["region"] = "nuclei"
    evaluated.tables["one"] = one
    ax = gp.pl.slide(evaluated, gene, table_key="one", window_um=(20, 20, 80, 80))
    assert any(image.get_gid() == "nuclei" for image in ax.images)
