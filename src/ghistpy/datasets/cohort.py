"""Simulated cohorts: patients with planted effects on survival, state and copies of genes, and known nulls."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghistpy import _keys
from ghistpy.datasets import _biology as biology

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ghistpy.io import Cohort

logger = logging.getLogger("ghistpy")

_SPREAD = 0.6  # SD of the log share of a type between patients
_SEGMENT = 25  # genes that share a copy-number call, about
_SPACING = 200_000  # bases between genes
_IMMUNE, _STATE, _GAINED = "T/NK", "Malignant", "Macrophage"


def simulate_cohort(
    *,
    n_patients: int = 200,
    n_genes: int = 60,
    n_cna_genes: int = 400,
    n_planted: int = 4,
    effect: float = 1.0,
    event_fraction: float = 0.5,
    slides: bool | str | Path = False,
    n_cells: int = 300,
    panel: int = 20,
    seed: int = 0,
) -> AnnData | tuple[AnnData, Cohort]:
    """Simulate patients of whom everything is known.

    Features are true cell-type shares (log) and gene expression. Of the genes the first ``n_planted`` change
    the hazard, the next so many differ between two states, the next so many follow the copies of the gene of
    their name; all others follow nothing, and a third of those are skewed. Of the types, more T/NK cells
    lower the hazard, malignant cells are more in state B, macrophages follow the copies of the gene
    ``MACRO``.

    Parameters
    ----------
    n_patients
        Number of patients, 10 and above.
    n_genes
        Number of gene features, at least three times ``n_planted``.
    n_cna_genes
        Genes with copy-number calls, among them those of the planted features.
    n_planted
        Genes with each kind of effect.
    effect
        Size of every planted effect: log hazard ratio per SD, shift in SD between states, shift in SD per
        copy-number step. 0 = all nulls.
    event_fraction
        Share of patients with an event, about.
    slides
        True: a slide per patient is simulated too, each time it is opened; its cells have the shares of the
        patient, so that survival, state and copies can be read from images. A path: the slides are written
        there (``<patient>.zarr``) with ``manifest.csv``.
    n_cells, panel
        Nuclei and genes of each slide.
    seed
        Of everything.

    Returns
    -------
    AnnData
        Patients x features:

        ====================== ====== ====================================================================
        key                    slot   meaning
        ====================== ====== ====================================================================
        time, event            obs    months (exponential, censored at random) and bool
        state                  obs    ``A`` or ``B``
        age, site, purity      obs    age raises the hazard (0.3 per SD); the others change nothing
        kind, gene, cell_type  var    as :func:`ghistpy.tl.cohort_features`
        log_hr, state_effect,  var    planted effects, 0 where there is none
        cna_effect
        cna                    uns    frame patients x genes, calls -2 … 2
        positions              uns    frame gene, chrom, start, end
        ====================== ====== ====================================================================

    Cohort
        Second, with ``slides``: the slides, with the columns of ``obs`` in its manifest.

    Raises
    ------
    ValueError
        Numbers out of range.

    Examples
    --------
    >>> import ghistpy as gp
    >>> cohort = gp.datasets.simulate_cohort(n_patients=50, seed=3)
    >>> cohort.shape, cohort.uns["cna"].shape
    ((50, 66), (50, 400))
    >>> cohort.var_names[(cohort.var["cna_effect"] != 0) & (cohort.var["kind"] == "gene_mean_bulk")].tolist()[0]
    'gene_mean_bulk--G008'
    """
    _check(n_patients, n_genes, n_cna_genes, n_planted, event_fraction)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    var = _features(n_genes, n_planted, effect)
    calls, positions = _copies(streams[0], n_patients, n_cna_genes, var)
    obs = _patients(streams[1], n_patients)
    values = _values(streams[2], obs, calls, var)
    obs["time"], obs["event"] = _survival(streams[3], values, obs, var, event_fraction)
    adata = _assemble(values, obs, var, calls, positions)
    if slides is False:
        return adata
    return adata, _slides(adata, slides, n_cells, panel, seed)


def _check(n_patients: int, n_genes: int, n_cna_genes: int, n_planted: int, event_fraction: float) -> None:
    if n_patients < 10:
        raise ValueError(f"n_patients={n_patients!r}: expected 10 or more")
    if n_planted < 0 or n_genes < 3 * n_planted:
        raise ValueError(f"n_planted={n_planted!r}: expected 0 to n_genes / 3 = {n_genes // 3}")
    if n_cna_genes < n_planted + 1:
        raise ValueError(f"n_cna_genes={n_cna_genes!r}: expected more than n_planted={n_planted}")
    if not 0 < event_fraction < 1:
        raise ValueError(f"event_fraction={event_fraction!r}: expected a share between 0 and 1")


def _features(n_genes: int, n_planted: int, effect: float) -> pd.DataFrame:
    import pandas as pd

    types, genes = list(biology.TYPES), [f"G{i:03d}" for i in range(n_genes)]
    var = pd.DataFrame(
        {
            "kind": ["log_share"] * len(types) + ["gene_mean_bulk"] * n_genes,
            "gene": [""] * len(types) + genes,
            "cell_type": types + [""] * n_genes,
            "log_hr": 0.0,
            "state_effect": 0.0,
            "cna_effect": 0.0,
        },
        index=[f"log_share--{t}" for t in types] + [f"gene_mean_bulk--{g}" for g in genes],
    )
    for i, column in enumerate(("log_hr", "state_effect", "cna_effect")):
        start = len(types) + i * n_planted
        # signs alternate
        var.iloc[start : start + n_planted, var.columns.get_loc(column)] = effect * np.resize([1.0, -1.0], n_planted)
    var.loc[f"log_share--{_IMMUNE}", "log_hr"] = -effect
    var.loc[f"log_share--{_STATE}", "state_effect"] = effect
    var.loc[f"log_share--{_GAINED}", "cna_effect"] = effect
    return var


def _copies(
    rng: np.random.Generator, n_patients: int, n_cna_genes: int, var: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Calls in segments along 22 chromosomes, and positions; planted genes are spread over them."""
    import pandas as pd

    names = np.array([f"C{i:05d}" for i in range(n_cna_genes)], dtype=object)
    genes = [g for g, e in zip(var["gene"], var["cna_effect"], strict=True) if g and e]
    names[np.linspace(0, n_cna_genes - 1, len(genes) + 1).astype(int)] = [*genes, "MACRO"]
    chrom = np.arange(n_cna_genes) * 22 // n_cna_genes
    first = np.searchsorted(chrom, chrom)
    start = 1_000_001 + (np.arange(n_cna_genes) - first) * _SPACING
    positions = pd.DataFrame(
        {"gene": names, "chrom": [f"chr{c + 1}" for c in chrom], "start": start, "end": start + 50_000}
    )
    within = chrom * n_cna_genes + (np.arange(n_cna_genes) - first) // _SEGMENT
    segment = np.unique(within, return_inverse=True)[1]
    # a segment has its own mean, a gene within it now and then a call of its own
    level = rng.normal(size=(n_patients, segment.max() + 1))[:, segment]
    focal = np.where(rng.random((n_patients, n_cna_genes)) < 0.1, rng.normal(0, 1.5, (n_patients, n_cna_genes)), 0)
    calls = np.digitize(level + focal, [-2.0, -0.7, 0.7, 2.0]) - 2
    return pd.DataFrame(calls.astype(float), columns=names), positions


def _patients(rng: np.random.Generator, n: int) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "state": pd.Categorical(np.where(rng.permutation(n) < n // 2, "A", "B")),
            "age": rng.normal(60, 10, n).round(1),
            "site": pd.Categorical([f"site_{i}" for i in rng.integers(0, max(2, n // 25), n)]),
            "purity": rng.beta(6, 4, n),
        },
        index=pd.Index([f"P{i:04d}" for i in range(n)], name=None, dtype=object),
    )


def _values(rng: np.random.Generator, obs: pd.DataFrame, calls: pd.DataFrame, var: pd.DataFrame) -> np.ndarray:
    """Features of mean 0 and SD 1 beside their planted shifts."""
    z = rng.normal(size=(len(obs), len(var)))
    z += (obs["state"] == "B").to_numpy()[:, None] * var["state_effect"].to_numpy()
    for j, (gene, effect) in enumerate(zip(var["gene"], var["cna_effect"], strict=True)):
        if effect:
            z[:, j] += effect * calls[gene or "MACRO"].to_numpy()
    return z


def _survival(
    rng: np.random.Generator, z: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame, event_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    age = obs["age"].to_numpy()
    hazard = np.exp(z @ var["log_hr"].to_numpy() + 0.3 * (age - age.mean()) / age.std())
    death = rng.exponential(60 / hazard)
    # one scale for all, so that censoring tells nothing about a patient
    unit = rng.exponential(size=len(obs))
    low, high = 1e-4, 1e8
    for _ in range(80):
        scale = np.sqrt(low * high)
        low, high = (scale, high) if (death <= unit * scale).mean() < event_fraction else (low, scale)
    time = np.minimum(death, unit * scale)
    return np.maximum(time, 1e-3), death <= unit * scale


def _assemble(
    z: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame, calls: pd.DataFrame, positions: pd.DataFrame
) -> AnnData:
    from anndata import AnnData

    X = z.copy()
    null = (var[["log_hr", "state_effect", "cna_effect"]] == 0).all(axis=1).to_numpy() & (var["gene"] != "").to_numpy()
    skewed = np.flatnonzero(null)[::3]
    X[:, skewed] = np.exp(1.5 * X[:, skewed])
    types = (var["kind"] == "log_share").to_numpy()
    X[:, types] = np.log(_shares(z[:, types]))
    calls.index = obs.index
    return AnnData(X, obs=obs, var=var, uns={"cna": calls, "positions": positions})


def _shares(z: np.ndarray) -> np.ndarray:
    """Cell-type shares (n, C) of patients whose log shares deviate by z from the usual ones."""
    shares = biology.PROPORTIONS * np.exp(_SPREAD * z)
    return shares / shares.sum(axis=1, keepdims=True)


class _Simulated(Mapping):
    """Slides by patient, made when they are asked for."""

    def __init__(self, options: dict[str, dict[str, Any]]) -> None:
        self.options = options

    def __getitem__(self, patient: str) -> Any:
        from ghistpy.datasets.simulate import simulate_slide

        slide = simulate_slide(**self.options[patient])
        slide.attrs[_keys.ATTRS].update({"sample": patient, "patient": patient})
        return slide

    def __iter__(self) -> Iterator[str]:
        return iter(self.options)

    def __len__(self) -> int:
        return len(self.options)


def _slides(adata: AnnData, where: bool | str | Path, n_cells: int, panel: int, seed: int) -> Cohort:
    from ghistpy.io import Cohort, read_cohort

    types = (adata.var["kind"] == "log_share").to_numpy()
    shares = np.exp(adata.X[:, types])
    common = {"n_cells": n_cells, "n_genes": panel, "biology_seed": seed}
    seeds = np.random.SeedSequence([seed, 1]).generate_state(adata.n_obs)
    options = {
        p: common | {"seed": int(s), "proportions": row.tolist()}
        for p, s, row in zip(adata.obs_names, seeds, shares, strict=True)
    }
    manifest = adata.obs.reset_index(names="sample").assign(patient=adata.obs_names)
    simulated = _Simulated(options)
    if where is True:
        return Cohort(manifest, slides=simulated)
    from tqdm.auto import tqdm

    folder = Path(where)
    folder.mkdir(parents=True, exist_ok=True)
    for patient in tqdm(simulated, desc="slides"):
        if not (folder / f"{patient}.zarr").exists():
            simulated[patient].write(folder / f"{patient}.zarr")
    manifest["path"] = [f"{p}.zarr" for p in adata.obs_names]
    manifest.to_csv(folder / "manifest.csv", index=False)
    return read_cohort(folder / "manifest.csv")
