"""Every key that ghistpy writes into a container, named once."""

from __future__ import annotations

# elements of a slide
IMAGE = "he"
LABELS = "nuclei"
SPOTS = "spots"
MEASURED = "measured"
INSILICO = "insilico"
INSILICO_SPOTS = "insilico_spots"
TISSUE = "tissue"
EVALUATION = "evaluation"
MATCHING = "matching"
TRANSCRIPTS = "transcripts"
SVG = "svg"
LOCAL_MORAN = "local_moran"

# coordinate system whose Scale holds µm/px
MICRONS = "microns"

# columns of obs
CELL_ID = "cell_id"
SPOT_ID = "spot_id"
REGION = "region"
CELL_TYPE = "cell_type"
CELL_TYPE_RAW = "cell_type_raw"
CELL_TYPE_CONFIDENCE = "cell_type_confidence"
AREA_UM2 = "area_um2"
TOTAL = "total"  # expected (in-silico) or measured counts over all genes of the assay
N_NUCLEI = "n_nuclei"
ORIGINAL_ID = "original_id"

UNASSIGNED = "unassigned"  # value of a cell type column: the cell was looked at and fits none

# obsm
SPATIAL = "spatial"
CELL_TYPE_PROBA = "cell_type_proba"
COMPOSITION = "composition"
MORPHOLOGY = "morphology"

# var
EXPECTED_PCC = "expected_pcc"
EXPECTED_SKILL = "expected_skill"

# uns and attrs
UNS = "ghistpy"
ATTRS = "ghistpy"

# results of cohort verbs in uns
CNA = "cna_association"

# values of uns["ghistpy"]["units"]
UNITS_COUNTS = "counts"
UNITS_LOG1P = "log1p(expected count)"

# patients: columns of obs, results in uns["ghistpy"]
RISK = "risk"
RISK_GROUP = "risk_group"
PATIENT_CLUSTER = "patient_cluster"
SURVIVAL = "survival"
KAPLAN_MEIER = "kaplan_meier"
OUTCOME = "outcome"
DIFFERENTIAL_STATE = "differential_state"
RISK_ORIGIN = "risk_origin"
EXTERNAL = "external_validation"
# tables of one slide (tl.composition, tl.neighborhood_correlation, ...)
NOTES = "_notes"  # suffix of the key in uns that holds parameters and what was left out
LOCAL = "_local"  # suffix of the key in obsm that holds the shares around every cell
NN_CORRELATION = "nn_correlation"
INTERACTION = "interaction"
RIPLEY_L = "ripley_l"
UMAP = "X_umap"
PCA = "X_pca"
EMBEDDED = "embedded"
MARKERS = "markers"
COMPARISON = "comparison"
