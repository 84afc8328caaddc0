"""Public data: where each file comes from and what it has to be, byte for byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DATA_VARIABLE = "GHISTPY_DATA_DIR"


@dataclass(frozen=True)
class Remote:
    """A public file. ``sha256`` is of the content that is used, after unpacking when ``packed``."""

    url: str
    sha256: str
    packed: bool = False


# https://github.com/almaan/her2st (Andersson et al. 2021, doi 10.1038/s41467-021-26271-2). Paths and commits
# were looked up in an index of the repository; each commit is one that holds the file, so a later move cannot
# break the link. Hashes are those of the files that the benchmarks were run on.
_HER2ST = "https://raw.githubusercontent.com/almaan/her2st"
_COUNTS = f"{_HER2ST}/e75e5c53a994726a8ad251aaf653a02d7932eb6a/data/ST-cnts"
_IMAGES = f"{_HER2ST}/9f2260c6aa8347996955d53f0a5f06ac14c93470/data/ST-imgs/C"
_SPOTS = f"{_HER2ST}/9f2260c6aa8347996955d53f0a5f06ac14c93470/data/ST-spotfiles"
_CLUSTERS = f"{_HER2ST}/5ef75b9530d59eff0965ad104672e75a7f0e2023/res/ST-cluster/lbl"
_PROPS = f"{_HER2ST}/e75e5c53a994726a8ad251aaf653a02d7932eb6a/res/ST-deconv/props/major"
_PROPS_FILE = "W.2020-03-04130406.862404.tsv.gz"

# https://github.com/ratschlab/DeepSpot (MIT), an excerpt of HEST; commits as above
_LUNG = "https://raw.githubusercontent.com/ratschlab/DeepSpot"
# genes of GENCODE v22 (hg38) as UCSC Xena serves them beside the data of the GDC
_XENA = "https://gdc-hub.s3.us-east-1.amazonaws.com/download"

REGISTRY: dict[str, Remote] = {
    "gene_positions/gencode.v22.annotation.gene.probeMap": Remote(
        f"{_XENA}/gencode.v22.annotation.gene.probeMap",
        "ebab5dd24943223855b603b8b6a712f52ce7f451997047b613bf9288081e0658",
    ),
    "her2st/images/C2.jpg": Remote(
        f"{_IMAGES}/C2/5714_HE_BT_C2.jpg",
        "26e2f73ae840cdd46c5bba405aae181f13a56a376b9848dff23f7a9c5de7f19e",
    ),
    "her2st/counts/C2.tsv.gz": Remote(
        f"{_COUNTS}/C2.tsv.gz",
        "c1c59ea6cffae36b9ecb561b8e2a97e3aa5f4085f748e991a0e330ed9d09773d",
    ),
    "her2st/spots/C2_selection.tsv": Remote(
        f"{_SPOTS}/C2_selection.tsv",
        "235b5f4306b3b57c628ffc82c98c7109602474fbcc79a917b9c50517f99b6b1c",
    ),
    "her2st/clusters/C2-cluster-annotation.tsv.gz": Remote(
        f"{_CLUSTERS}/C2-cluster-annotation.tsv.gz",
        "3211500325b1be1cd2be7480f2b094a48647fc25df4d8fe6afb8c48c15650ece",
    ),
    "her2st/props/C2-major.tsv": Remote(
        f"{_PROPS}/C2/{_PROPS_FILE}",
        "d4bed4fb7d1fb758b32431f923480d0c5578579d4b4a8cafe314b691e33b4c45",
        packed=True,
    ),
    "her2st/images/C3.jpg": Remote(
        f"{_IMAGES}/C3/5714_HE_BT_D1.jpg",
        "0005a92674014d473040a28f0afca89ce5fa5c44019b479b638ceb3272ceb568",
    ),
    "her2st/counts/C3.tsv.gz": Remote(
        f"{_COUNTS}/C3.tsv.gz",
        "e00c55a3eb9caac5d9c71b8906aae8be8b38f93e23938f4a0ebee17683ef6a2a",
    ),
    "her2st/spots/C3_selection.tsv": Remote(
        f"{_SPOTS}/C3_selection.tsv",
        "7fd76c13370b7804ac3bb377b846d22485cf9223f9dd8dfc25be06e5aaf65755",
    ),
    "her2st/clusters/C3-cluster-annotation.tsv.gz": Remote(
        f"{_CLUSTERS}/C3-cluster-annotation.tsv.gz",
        "a1522a14855bc2022ccbb9ea9cbae59837cbcd310bc4c02727ae6bfa37e6d369",
    ),
    "her2st/props/C3-major.tsv": Remote(
        f"{_PROPS}/C3/{_PROPS_FILE}",
        "b11abb56236fc3d3f49544c9a2400635d7b7a2083cc7281410d9c3d6b4dee267",
        packed=True,
    ),
    "her2st/images/C4.jpg": Remote(
        f"{_IMAGES}/C4/5714_HE_BT_D2.jpg",
        "f40607eb1d5f0d125decd71c48b0c5d29cf6776ad92297fd185631208c82d6f2",
    ),
    "her2st/counts/C4.tsv.gz": Remote(
        f"{_COUNTS}/C4.tsv.gz",
        "33201f76d41d7131dc600a0f87d9a70383af3503e81698b4d11e6f2e8d73e9da",
    ),
    "her2st/spots/C4_selection.tsv": Remote(
        f"{_SPOTS}/C4_selection.tsv",
        "47e79f3b9dbfa3a8c18af9e948ba7ba4bf0a75ea1b4c292bc714ced7d0917d4c",
    ),
    "her2st/clusters/C4-cluster-annotation.tsv.gz": Remote(
        f"{_CLUSTERS}/C4-cluster-annotation.tsv.gz",
        "a5cc7a3a40983a21ea8400145c80a7dc5b13e7468b987ec0610f4c2123978c71",
    ),
    "her2st/props/C4-major.tsv": Remote(
        f"{_PROPS}/C4/{_PROPS_FILE}",
        "c0dcfca1ef3bacfa4bcfc41628648f9951241a549373377a2e6cc42243a0509d",
        packed=True,
    ),
    "her2st/images/C5.jpg": Remote(
        f"{_IMAGES}/C5/5714_HE_BT_E1.jpg",
        "34028ea41e376396b50c42b0a11a7e689c85be4a8022e668d0a09cc128c04c65",
    ),
    "her2st/counts/C5.tsv.gz": Remote(
        f"{_COUNTS}/C5.tsv.gz",
        "c0f310315ca6110d74dbdf7011e5b42432ba0b8eb5f001824764911988f39338",
    ),
    "her2st/spots/C5_selection.tsv": Remote(
        f"{_SPOTS}/C5_selection.tsv",
        "2114cc3b4da759772112897f1e247d5443c9f8c808e6a9a952eb4fda379a194c",
    ),
    "her2st/clusters/C5-cluster-annotation.tsv.gz": Remote(
        f"{_CLUSTERS}/C5-cluster-annotation.tsv.gz",
        "5929e9183e09717891fce94a71ec94551a86d5267ebb085067ac1d71894bc4ea",
    ),
    "her2st/props/C5-major.tsv": Remote(
        f"{_PROPS}/C5/{_PROPS_FILE}",
        "d615ed3e8c78f32a7d0289f2e57afe5d44cf4610d32de65e0965deebfb539ba7",
        packed=True,
    ),
    "xenium_lung_tma/NCBI858.jpg": Remote(
        f"{_LUNG}/6570a049e68bca3ee92f71fb34d7d88bfc5483c4/example_data/data/image/NCBI858.jpg",
        "7ad9ac065f89c57ec62d9010e8352e56f99cb4fc47359f46ab3db0ccc2b21123",
    ),
    "xenium_lung_tma/NCBI858.h5ad": Remote(
        f"{_LUNG}/84a3071c5589cbf18efb04e433adb94d98392ee3/example_data/data/h5ad/NCBI858.h5ad",
        "4c1c428d0f14e5c6a47716652a91dadfa26c1c6c349093bbb4b45c1f10f445aa",
    ),
}

# https://github.com/mahmoodlab/PORPOISE (Chen et al. 2022, doi 10.1016/j.ccell.2022.07.004); path and commit as above
REGISTRY["tcga_brca/porpoise_tcga_brca_all_clean.csv.zip"] = Remote(
    "https://raw.githubusercontent.com/mahmoodlab/PORPOISE/8ddca09b6812df7a0a643126a8b08cc3ec2e7d23"
    "/datasets_csv_mutsig/tcga_brca_all_clean.csv.zip",
    "4bc9de58ef6e8f8f7566fef6512c6c7db62cb827e4117b6f356d679e26e3e5f8",
)


def fetch(name: str, *, download: Callable[..., None] | None = None) -> Path:
    """Path of a public file: from the folder in GHISTPY_DATA_DIR when set, else downloaded once and checked.

    Parameters
    ----------
    name
        Key of :data:`REGISTRY`, such as ``"her2st/counts/C2.tsv.gz"``.
    download
        A pooch downloader; default: by HTTPS.

    Returns
    -------
    pathlib.Path
        The file, or the same file with ``.gz`` where that is what GHISTPY_DATA_DIR holds. Downloads are
        kept in the cache folder of the user.

    Raises
    ------
    ValueError
        An unknown name, or a download whose SHA-256 is not the expected one.
    FileNotFoundError
        GHISTPY_DATA_DIR is set but the file is not in it.
    """
    if name not in REGISTRY:
        raise ValueError(f"name={name!r} is not a known file; known: {sorted(REGISTRY)}")
    folder = os.environ.get(DATA_VARIABLE)
    if folder:
        path = Path(folder) / "data" / name
        if not path.is_file() and path.with_name(path.name + ".gz").is_file():
            return path.with_name(path.name + ".gz")
        if not path.is_file():
            raise FileNotFoundError(
                f"{DATA_VARIABLE}={folder!r} has no file data/{name}; unset the variable to download the file"
            )
        return path
    return _download(name, REGISTRY[name], download)


def _download(name: str, remote: Remote, download: Callable[..., None] | None) -> Path:
    import pooch

    local = name + ".gz" if remote.packed else name
    fetched = pooch.retrieve(
        remote.url,
        # the hash of a packed file depends on who packed it; its content is checked below
        known_hash=None if remote.packed else f"sha256:{remote.sha256}",
        fname=Path(local).name,
        path=Path(pooch.os_cache("ghistpy")) / Path(local).parent,
        processor=pooch.Decompress(name=Path(name).name) if remote.packed else None,
        downloader=download,
    )
    path = Path(fetched)
    if remote.packed:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != remote.sha256:
            path.unlink()
            raise ValueError(f"{remote.url}: SHA-256 of its content is {found}, expected {remote.sha256}")
    return path
