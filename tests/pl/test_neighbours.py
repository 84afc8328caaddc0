"""Neighbour figures: what is drawn equals what is stored."""

import numpy as np
import pytest

import ghistpy as gp


@pytest.fixture
def slide(evaluated):
    for key in ("measured", "insilico"):
        gp.tl.neighborhood_correlation(evaluated, table_key=key)
        gp.tl.neighborhood_correlation(evaluated, table_key=key, n_neighbors=6, within_type=True, key_added="within")
        gp.tl.cell_type_interaction(evaluated, table_key=key, radius=40, n_perms=99)
        gp.tl.ripley_l(evaluated, table_key=key, step=10, n_perms=19, min_cells=5)
    return evaluated


def test_nn_correlation_draws_the_largest_values(slide):
    table = slide["measured"]
    table.X = table.X.toarray()
    table.X[:, 2] = 1
    gp.tl.neighborhood_correlation(slide, table_key="measured")
    ax = gp.pl.nn_correlation(slide, keys=["nn_correlation", "within"], table_key="measured", n_genes=10)
    expected = table.var["nn_correlation"].sort_values(ascending=False).iloc[:10]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(expected.index)
    drawn = {c.get_gid(): c.get_offsets()[:, 0] for c in ax.collections if c.get_gid()}
    np.testing.assert_allclose(drawn["nn_correlation"], expected)
    np.testing.assert_allclose(drawn["within"], table.var["within"][expected.index])
    assert "1 gene without value" in ax.get_xlabel()
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["nearest neighbour", "6 nearest neighbours, within type"]
    named = gp.pl.nn_correlation(table, genes=list(table.var_names[:2]))
    assert len(named.get_yticklabels()) == 2


def test_interaction_is_symmetric_and_marks_small_p(slide):
    frame = slide["measured"].uns["interaction"]
    ax = gp.pl.interaction(slide, table_key="measured")
    matrix = np.asarray(ax.images[0].get_array().filled(np.nan))
    names = [t.get_text() for t in ax.get_xticklabels()]
    for row in frame.itertuples():
        i, j = names.index(row.cell_type), names.index(row.neighbor_type)
        np.testing.assert_equal(matrix[i, j], row.log2_ratio)
        np.testing.assert_equal(matrix[j, i], row.log2_ratio)
    low, high = ax.images[0].get_clim()
    assert low == -high
    dots = sum("•" in t.get_text() for t in ax.texts)
    small = frame[(frame["pval_adj"] < 0.05) & frame["log2_ratio"].notna()]
    assert (
        dots
        == (small["cell_type"] != small["neighbor_type"]).sum() * 2
        + (small["cell_type"] == small["neighbor_type"]).sum()
    )
    assert not any("-" in t.get_text() for t in ax.texts)  # real minus signs


def test_fractions_fill_one_triangle_and_sum_to_100(slide):
    ax = gp.pl.interaction(slide, table_key="measured", value="fraction")
    matrix = ax.images[0].get_array().filled(np.nan)
    assert np.isnan(matrix[np.triu_indices(len(matrix), 1)]).all()
    assert np.nansum(matrix) == pytest.approx(100)
    assert ax.figure.axes[-1].get_ylabel() == "% of neighbour pairs"
    assert ax.images[0].get_clim()[0] == 0


def test_interaction_of_predicted_types_has_no_p(slide):
    frame = slide["insilico"].uns["interaction"]
    frame["zscore"] = frame["pval"] = frame["pval_adj"] = np.nan
    ax = gp.pl.interaction(slide, table_key="insilico")
    assert not any("•" in t.get_text() for t in ax.texts)
    assert ax.get_title(loc="left") == "predicted types: no p-values"
    with pytest.raises(ValueError, match="no 'zscore' is stored .withheld for types that were predicted"):
        gp.pl.interaction(slide, table_key="insilico", value="zscore")


def test_ripley_draws_curves_and_envelope(slide):
    frame = slide["measured"].uns["ripley_l"]
    names = sorted(set(frame["cell_type"]))
    ax = gp.pl.ripley(slide, names[0], table_key="measured")
    lines = {line.get_gid(): line.get_ydata() for line in ax.lines if line.get_gid() in names}
    assert set(lines) == set(names)
    for name in names:
        part = frame[(frame["cell_type"] == names[0]) & (frame["neighbor_type"] == name)]
        np.testing.assert_allclose(lines[name], part["l_minus_r"])
    bands = [c for c in ax.collections if c.get_gid() == "envelope"]
    assert len(bands) == 1  # around the bands of all curves
    here = frame[frame["cell_type"] == names[0]]
    drawn = bands[0].get_datalim(ax.transData)
    assert drawn.y0 == pytest.approx((here["low"] - here["radius"]).min())
    assert drawn.y1 == pytest.approx((here["high"] - here["radius"]).max())
    for name in names:  # solid where outside the own band
        part = here[here["neighbor_type"] == name]
        out = ((part["l"] < part["low"]) | (part["l"] > part["high"])).to_numpy()
        solid = next(line for line in ax.lines if line.get_gid() == f"outside:{name}").get_ydata()
        np.testing.assert_allclose(solid[out], part["l_minus_r"][out])
        assert out.any() or np.isnan(solid).all()
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend[len(names)].startswith("shuffled types: around")
    one = gp.pl.ripley(slide, names[0], neighbor_types=names[1], table_key="measured")
    assert sum(line.get_gid() in names for line in one.lines) == 1


def test_ripley_without_band(slide):
    table = slide["insilico"]
    table.uns["ripley_l"]["low"] = table.uns["ripley_l"]["high"] = np.nan
    names = sorted(set(table.uns["ripley_l"]["cell_type"]))
    ax = gp.pl.ripley(slide, names[0], table_key="insilico")
    assert not any(c.get_gid() == "envelope" for c in ax.collections)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == names
    assert {line.get_linestyle() for line in ax.lines if line.get_gid() in names} == {"-"}


def test_composition_by_region_is_stacked_to_one(slide):
    gp.tl.composition(slide, table_key="measured", groupby="niche")
    ax = gp.pl.composition(slide, table_key="measured", key="composition")
    frame = gp.get.composition(slide, table_key="measured")
    regions = list(frame["region"].drop_duplicates())
    assert [t.get_text().split("  ")[0] for t in ax.get_yticklabels()] == regions
    width = {c.get_label(): [p.get_width() for p in c] for c in ax.containers}
    for name, part in frame.groupby("cell_type"):
        np.testing.assert_allclose(width[name], part.set_index("region")["proportion"][regions].fillna(0))
    np.testing.assert_allclose(sum(np.array(v) for v in width.values()), 1)


def test_composition_is_drawn_without_its_key_where_nothing_was_evaluated(slide):
    gp.tl.composition(slide, table_key="measured")
    assert gp.pl.composition(slide["measured"]).get_xlabel() == "share of cells"
    gp.tl.composition(slide, table_key="insilico")
    assert gp.pl.composition(slide).get_xlabel() == "share of nuclei"  # an evaluation comes first
    with pytest.raises(ValueError, match="holds no such evaluation"):
        gp.pl.composition(slide["spots_measured"])


def test_embedding_draws_sampled_cells_only(slide):
    table = slide["measured"]
    place = np.random.default_rng(0).normal(size=(table.n_obs, 2))
    place[:100] = np.nan
    table.obsm["X_umap"] = place
    ax = gp.pl.embedding(slide, table_key="measured")
    drawn = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(drawn[:, 0]), np.sort(place[100:, 0]))
    assert ax.get_title(loc="left") == "300 of 400 cells"
    gene = table.var_names[0]
    ax = gp.pl.embedding(table, gene)
    expected = np.log1p(table.X[100:, 0].toarray().ravel())
    np.testing.assert_allclose(np.sort(ax.collections[0].get_array()), np.sort(expected), rtol=1e-6)
    legend = [t.get_text() for t in gp.pl.embedding(slide, table_key="measured").get_legend().get_texts()]
    assert legend == sorted(table.obs["cell_type"].cat.categories)


def test_forty_types_have_room_and_colours_of_their_own(slide):
    table = slide["measured"]
    names = np.array([f"type {i:02d}" for i in range(40)])
    table.obs["cell_type"] = names[np.arange(table.n_obs) % 40]
    table.obsm["X_umap"] = table.obsm["spatial"]
    gp.tl.composition(table, groupby="niche")
    gp.tl.cell_type_interaction(table, radius=40, key_added="many")
    for ax in (gp.pl.embedding(table), gp.pl.composition(table, key="composition")):
        ax.figure.canvas.draw()
        legend = ax.get_legend()
        assert len(legend.get_texts()) == 40
        box, page = legend.get_window_extent(), ax.figure.bbox
        assert ax.get_window_extent().x1 < box.x0 < box.x1 <= page.x1
        assert 0 <= box.y0
        assert ax.get_window_extent().width > 300
        handles = legend.legend_handles
        colours = [h.get_color() if hasattr(h, "get_color") else h.get_facecolor() for h in handles]
        assert len({tuple(c) for c in colours}) == 40
    ax = gp.pl.interaction(table, key="many")
    assert max(ax.figure.get_size_inches()) < 13
    assert not any(t.get_text() for t in ax.texts)  # no room for numbers


def test_marker_maps_share_scales_between_tables(slide):
    genes = list(slide["measured"].var_names[:2])
    axes = gp.pl.marker_maps(slide, genes, table_keys=["measured", "insilico"])
    assert axes.shape == (2, 4)
    assert [ax.get_title() for ax in axes[0]] == ["H&E", "cell type", *genes]
    axes = np.c_[axes[:, :1], gp.pl.marker_maps(slide, genes, table_keys=["measured", "insilico"], image_key=None)]
    limits = [[ax.collections[0].get_clim() for ax in row[2:]] for row in axes]
    assert limits[0] == limits[1]
    assert limits[0][0] != limits[0][1]
    assert axes[1, 0] is axes[0, 0]  # one image for both rows
    bars = [ax for ax in axes[0, 1].figure.axes if ax.get_label() == "<colorbar>"]
    assert [bar.get_xlabel() for bar in bars] == ["log1p(count)"] * 2  # one below each gene
    axes[0, 1].figure.canvas.draw()
    left = [ax.get_position().x0 for ax in axes[0, 1:]]
    np.testing.assert_allclose(np.diff(left), np.diff(left)[0], rtol=0.02)
    values = axes[1, 2].collections[0].get_array()
    np.testing.assert_allclose(np.sort(values), np.sort(np.asarray(slide["insilico"].X[:, 0])), rtol=1e-6)
    one = gp.pl.marker_maps(slide, genes, table_keys="measured", image_key=None, shared_scale=True)
    assert one.shape == (1, 3)
    assert one[0, 1].collections[0].get_clim() == one[0, 2].collections[0].get_clim()


def test_a_type_has_one_colour_in_both_tables(slide):
    axes = gp.pl.marker_maps(slide, [], table_keys=["measured", "insilico"], image_key=None)
    colours = []
    for ax, key in zip(axes[:, 0], ("measured", "insilico"), strict=True):
        labels = slide[key].obs["cell_type"].astype(str).to_numpy()
        faces = ax.collections[0].get_facecolors()
        colours.append({label: tuple(faces[np.flatnonzero(labels == label)[0]]) for label in set(labels)})
    for name in set(colours[0]) & set(colours[1]):
        assert colours[0][name] == colours[1][name]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: gp.pl.nn_correlation(s, keys="none", table_key="measured"), r"\['none'\] are not in var"),
        (lambda s: gp.pl.nn_correlation(s, genes=["none"], table_key="measured"), "'none'"),
        (lambda s: gp.pl.interaction(s), "table_key=None is not among"),
        (lambda s: gp.pl.interaction(s, key="x", table_key="measured"), r"there are \['interaction'\]"),
        (lambda s: gp.pl.interaction(s, value="p", table_key="measured"), "value='p'"),
        (lambda s: gp.pl.ripley(s, "none", table_key="measured"), r"\['none'\] have no L"),
        (lambda s: gp.pl.embedding(s, table_key="measured", basis="X_tsne"), "basis='X_tsne'"),
        (lambda s: gp.pl.marker_maps(s, ["none"]), r"\['none'\] are not in table"),
        (lambda s: gp.pl.marker_maps(s, [], table_keys="tables"), "table_keys='tables'"),
    ],
)
def test_errors(slide, call, message):
    with pytest.raises(ValueError, match=message):
        call(slide)
