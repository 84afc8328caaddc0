"""Copy-number calls and gene positions, checked and put beside each other."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("ghistpy")

_SEX = ("chrX", "chrY")
_COLUMNS = {
    "chrom": ("chrom", "chromosome", "chr", "seqname"),
    "start": ("start", "chromStart", "gene_start"),
    "end": ("end", "chromEnd", "gene_end"),
}


def some(names: Sequence[Any], n: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def left_out(what: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Say who or what is left out, for the notes."""
    if len(names):
        logger.warning("cna_association: %d %s left out: %s", len(names), what.replace("_", " "), some(names))
    return {what: [str(name) for name in names]}


@dataclass(frozen=True)
class Calls:
    """Copy-number calls (patients, genes) as int8, ``missing`` where there is none."""

    values: np.ndarray
    patients: np.ndarray
    genes: np.ndarray
    missing: np.ndarray | None

    @property
    def n_missing(self) -> int:
        """How many calls are missing."""
        return 0 if self.missing is None else int(self.missing.sum())


def dense(matrix: Any) -> np.ndarray:
    """A matrix as an array."""
    from scipy import sparse

    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def read_calls(cna: AnnData | pd.DataFrame, patient_key: str | None = None) -> Calls:
    """Calls of an AnnData or a frame of patients x genes, checked to lie in -2 .. 2."""
    import pandas as pd

    if isinstance(cna, pd.DataFrame):
        raw, patients, genes = cna.to_numpy(), cna.index, cna.columns
    elif hasattr(cna, "var_names"):
        raw, genes = dense(cna.X), cna.var_names
        patients = cna.obs[patient_key] if patient_key is not None and patient_key in cna.obs else cna.obs_names
    else:
        raise ValueError(f"cna: expected an AnnData or a DataFrame of patients x genes, got {type(cna).__name__}")
    patients, genes = np.asarray(patients, dtype=str), np.asarray(genes, dtype=str)
    _once(patients, "cna: patients")
    _once(genes, "cna: genes")
    missing = None
    if raw.dtype.kind not in "iu":
        try:
            raw = raw.astype(np.float64, copy=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cna: calls must be numbers from -2 to 2, got {error}") from error
        missing = np.isnan(raw)
        raw, missing = (np.where(missing, 0, raw), missing) if missing.any() else (raw, None)
    wrong = (raw < -2) | (raw > 2) | (raw != np.rint(raw))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"cna: {int(wrong.sum())} values are no calls, such as {raw[row, column]!r} of {genes[column]} in "
            f"{patients[row]}; expected -2 (deep loss), -1, 0, 1, 2 (amplification) or missing, as GISTIC writes "
            "them: log ratios have to be called first"
        )
    return Calls(raw.astype(np.int8), patients, genes, missing)


def _once(names: np.ndarray, what: str) -> None:
    unique, count = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        repeated = unique[count > 1]
        raise ValueError(
            f"{what} repeat: {some(repeated)}; there must be one row per patient and one column per gene "
            "(keep one sample of each patient, or combine them first)"
        )


def match_patients(table: np.ndarray, calls: Calls) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Rows of both for the patients in both, in the order of the table, and who is in one only."""
    import pandas as pd

    _once(table, "adata: patients")
    position = pd.Index(calls.patients).get_indexer(table)
    rows = np.flatnonzero(position >= 0)
    if not len(rows):
        turned = len(set(table) & set(calls.genes))
        hint = "; cna looks transposed (genes x patients), pass cna.T" if turned else ""
        raise ValueError(
            f"cna and adata share no patient: adata has {some(table, 3)}, cna has {some(calls.patients, 3)}{hint}"
        )
    only = left_out("patients_without_calls", table[position < 0])
    only |= left_out("patients_with_calls_only", sorted(set(calls.patients) - set(table)))
    return rows, position[rows], only


def position_table(cna: Any, positions: pd.DataFrame | None) -> pd.DataFrame:
    """Frame chrom, start, end by gene: columns of ``cna.var``, else ``positions``, else GENCODE v22.

    A symbol in several places of one chromosome lies at the first; one on several chromosomes nowhere.
    """
    var = cna.var if hasattr(cna, "var_names") else None
    if positions is None and var is not None:
        found = {name: next((c for c in names if c in var), None) for name, names in _COLUMNS.items()}
        if found["chrom"] and found["start"]:
            found["end"] = found["end"] or found["start"]
            frame = var[[found[name] for name in ("chrom", "start", "end")]].set_axis(["chrom", "start", "end"], axis=1)
            return _tidy(frame)
    if positions is None:
        from ghistpy.datasets import gene_positions

        positions = gene_positions()
    missing = {"chrom", "start"} - set(positions.columns)
    if missing:
        raise ValueError(
            f"positions: columns {sorted(missing)} are missing, there are {list(positions.columns)}; expected chrom, "
            "start, end, and gene unless the index holds the genes"
        )
    frame = positions.set_index("gene") if "gene" in positions else positions
    if "end" not in frame:
        frame = frame.assign(end=frame["start"])
    return _tidy(frame[["chrom", "start", "end"]])


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    frame = frame.dropna().copy()
    frame.index = frame.index.astype(str)
    frame["chrom"] = [chromosome(name) for name in frame["chrom"]]
    for name in ("start", "end"):
        frame[name] = pd.to_numeric(frame[name]).astype(np.int64)
    repeated = frame.index.duplicated(keep=False)
    if repeated.any():
        places = frame[repeated].groupby(level=0)["chrom"].nunique()
        frame = frame[~frame.index.isin(places.index[places > 1])]
        frame = frame[~frame.index.duplicated()]
    return frame


def chromosome(name: Any) -> str:
    """A name as ``chr1`` … ``chrX``: from 1, 1.0, "01", "x", "Chr1"; 23 and 24 are X and Y, as PLINK writes them."""
    short = re.sub(r"(?i)^chr", "", str(name).strip())
    if re.fullmatch(r"\d+(\.0+)?", short):
        short = str(int(float(short)))
        short = {"23": "X", "24": "Y"}.get(short, short)
    elif short.upper() in ("X", "Y", "M", "MT"):
        short = short.upper()[0]
    return f"chr{short}"


def locate(genes: np.ndarray, table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, dict[str, Any]]:
    """Positions of the genes that are tested, which they are, and which were left out.

    Genes of chrX and chrY are left out (their copies differ between the sexes), and genes without a
    position, of which nobody can tell whether they lie there.
    """
    placed = table.reindex(genes)
    nowhere = placed["chrom"].isna().to_numpy()
    if nowhere.all():
        raise ValueError(
            f"cna: none of the {len(genes)} genes has a position ({some(genes, 3)}; positions are known for "
            f"{some(table.index, 3)}); pass positions= or give cna.var the columns chrom, start, end"
        )
    sex = placed["chrom"].isin(_SEX).to_numpy()
    dropped = left_out("genes_without_position", genes[nowhere]) | left_out("genes_on_sex_chromosomes", genes[sex])
    kept = np.flatnonzero(~nowhere & ~sex)
    if not len(kept):
        raise ValueError("cna: every gene with a position lies on chrX or chrY, which are not tested")
    frame = placed.iloc[kept].rename_axis("gene").reset_index()
    frame[["start", "end"]] = frame[["start", "end"]].astype(np.int64)
    return frame, kept, dropped
