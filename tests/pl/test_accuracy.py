"""Accuracy, type and training figures: what is drawn equals what is stored."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import ghistpy as gp


def _points(ax, method):
    return [c.get_offsets()[:, 1] for c in ax.collections if c.get_gid() == method]


def test_gene_accuracy_draws_every_gene_of_every_set(evaluated):
    ax = gp.pl.gene_accuracy(evaluated)
    frame = gp.get.evaluation(evaluated)
    stored = frame.query("level == 'gene' and metric == 'pearson'").pivot(
        index="name", columns="method", values="value"
    )
    members = gp.get.evaluation(evaluated, part="gene_sets")
    sets = [members["gene"].tolist(), stored.index.tolist()]  # one set of twenty, and all genes
    for method in ("model", "type_mean", "oracle_type_mean", "position"):
        drawn = _points(ax, method)
        assert len(drawn) == 2
        for values, genes in zip(drawn, sets, strict=True):
            np.testing.assert_allclose(np.sort(values), np.sort(stored.loc[genes, method]), atol=1e-12)
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 1.4]
    assert stored.loc[sets[0], "model"].median() == pytest.approx(medians[0])
    ceilings = [line.get_ydata()[0] for line in ax.lines if line.get_gid() == "ceiling"]
    np.testing.assert_allclose(ceilings, [stored.loc[g, "noise_ceiling"].median() for g in sets])
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels[0].startswith("top20\nn = 20\n(chosen")
    assert labels[1] == "all genes\nn = 24"
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["model", "type mean", "measured-type mean", "position", "noise ceiling"]


def test_gene_accuracy_counts_genes_without_value(evaluated):
    evaluated["insilico"].X[:, 0] = 0
    gp.tl.evaluate(evaluated, baselines=())
    ax = gp.pl.gene_accuracy(evaluated, gene_sets=["all genes"], ceiling=False)
    assert ax.get_xticklabels()[0].get_text() == "all genes\nn = 23\n1 without value"
    assert len(_points(ax, "model")[0]) == 23


def test_gene_accuracy_of_another_metric_and_methods(evaluated):
    ax = gp.pl.gene_accuracy(evaluated, metric="skill", methods=["position", "model"], gene_sets=["all genes"])
    assert ax.get_ylabel() == "skill over the type mean per gene"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["position", "model"]
    with pytest.raises(ValueError, match="metric='r2' is not in the evaluation"):
        gp.pl.gene_accuracy(evaluated, metric="r2")
    with pytest.raises(ValueError, match=r"methods: \['cnn'\]; the evaluation has \['model'"):
        gp.pl.gene_accuracy(evaluated, methods=["cnn"])
    with pytest.raises(ValueError, match=r"gene_sets: \['svg'\]"):
        gp.pl.gene_accuracy(evaluated, gene_sets=["svg"])
    with pytest.raises(ValueError, match="run tl.evaluate first"):
        gp.pl.gene_accuracy(evaluated, key="other")


def test_gene_scatter_pairs_by_id(evaluated):
    table = evaluated["insilico"]
    want = np.column_stack([np.log1p(evaluated["measured"].X[:, 2].toarray().ravel()), table.X[:, 2]])
    stored = gp.get.evaluation(evaluated).query("level == 'gene' and method == 'model' and metric == 'pearson'")
    evaluated.tables["insilico"] = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    gene = table.var_names[2]
    ax = gp.pl.gene_scatter(evaluated, gene)
    drawn = np.asarray(ax.collections[0].get_offsets())
    order = [np.lexsort(v.T) for v in (drawn, want)]
    np.testing.assert_allclose(drawn[order[0]], want[order[1]], atol=1e-6)
    r = stored.set_index("name")["value"][gene]
    assert ax.texts[0].get_text() == f"r = {r:.2f}\nn = 400 cells"
    identity = next(line for line in ax.lines if line.get_gid() == "identity")
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    with pytest.raises(ValueError, match="gene='XYZ' is not in both tables"):
        gp.pl.gene_scatter(evaluated, "XYZ")


def test_gene_scatter_of_many_points_is_a_density(evaluated, monkeypatch):
    from ghistpy.get import pairs as module

    original = module.pair_tables

    def many(*args, **kwargs):
        pairs = original(*args, **kwargs)
        t = pairs.truth[:, [0]].toarray().ravel().repeat(20)[:, None]
        p = pairs.predicted(np.array([0])).repeat(20, axis=0)
        return SimpleNamespace(
            genes=pairs.genes[:1], truth=t.view(_Dense), predicted=lambda at: p, total=None, kind="cells"
        )

    class _Dense(np.ndarray):
        def toarray(self):
            return np.asarray(self)

    monkeypatch.setattr(module, "pair_tables", many)
    ax = gp.pl.gene_scatter(evaluated, evaluated["insilico"].var_names[0])
    assert ax.collections[0].get_array().sum() == 8000


def test_composition_bars_are_the_stored_shares(evaluated):
    ax = gp.pl.composition(evaluated)
    truth = evaluated["measured"].obs["cell_type"].astype(str).value_counts(normalize=True)
    guess = evaluated["insilico"].obs["cell_type"].astype(str).value_counts(normalize=True)
    names = [t.get_text() for t in ax.get_yticklabels()]
    filled, hollow = ax.containers
    np.testing.assert_allclose([b.get_width() for b in filled], truth[names])
    np.testing.assert_allclose([b.get_width() for b in hollow], guess.reindex(names).fillna(0))
    assert truth[names].is_monotonic_increasing  # the most frequent on top
    del evaluated["measured"].obs["cell_type"]
    gp.tl.evaluate(evaluated, baselines=())
    with pytest.raises(ValueError, match="holds no cell types: absent: no measured types"):
        gp.pl.composition(evaluated)
    with pytest.raises(ValueError, match="part='confusion' is absent"):
        gp.pl.confusion(evaluated)


def test_confusion_is_row_normalised(evaluated):
    ax = gp.pl.confusion(evaluated)
    truth, guess = (evaluated[k].obs["cell_type"].astype(str).to_numpy() for k in ("measured", "insilico"))
    want = pd.crosstab(truth, guess, normalize="index")
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), want.to_numpy())
    assert [t.get_text() for t in ax.get_xticklabels()] == want.columns.tolist()
    assert ax.get_yticklabels()[0].get_text() == f"{want.index[0]}  ({(truth == want.index[0]).sum()})"
    accuracy = (truth == guess).mean()
    assert f"accuracy {accuracy:.2f}" in ax.get_title()


def test_history_marks_the_lowest_validation_loss():
    frame = pd.DataFrame({"epoch": [0, 1, 2, 3], "train_loss": [4, 3, 2, 1.0], "val_loss": [4, 3.5, 3.0, 3.2]})
    ax = gp.pl.history(SimpleNamespace(history=frame))
    curves = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(curves["training"].get_ydata(), frame["train_loss"])
    np.testing.assert_array_equal(curves["validation"].get_ydata(), frame["val_loss"])
    assert (curves["lowest"].get_xdata()[0], curves["lowest"].get_ydata()[0]) == (2, 3.0)
    assert len(gp.pl.history(frame.drop(columns="val_loss")).lines) == 1
    for none in (None, pd.DataFrame()):
        with pytest.raises(ValueError, match="this model has no history"):
            gp.pl.history(SimpleNamespace(history=none))
    with pytest.raises(ValueError, match=r"columns \['train_loss'\] are missing"):
        gp.pl.history(pd.DataFrame({"epoch": [0]}))


def test_every_figure_can_be_saved(evaluated, tmp_path):
    gene = evaluated["insilico"].var_names[0]
    figures = {
        "slide": gp.pl.slide(evaluated, gene),
        "compare": gp.pl.compare_genes(evaluated, [gene])[0, 0],
        "accuracy": gp.pl.gene_accuracy(evaluated),
        "scatter": gp.pl.gene_scatter(evaluated, gene),
        "composition": gp.pl.composition(evaluated),
        "confusion": gp.pl.confusion(evaluated),
    }
    for name, ax in figures.items():
        ax.figure.savefig(tmp_path / f"{name}.pdf")
        assert (tmp_path / f"{name}.pdf").stat().st_size < 2_000_000
