"""Predict every nucleus of a slide with the default network."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ghistpy.data.slide import Slide
from ghistpy.data.windows import N_MORPHOLOGY, prepare
from ghistpy.engine.extract import Extracted, ExtractedBlocks, extract_blocks
from ghistpy.engine.features import composition, plan_squares, softmax, square_features
from ghistpy.engine.options import RunOptions
from ghistpy.engine.prediction import Prediction
from ghistpy.engine.scratch import Blocks, Scratch
from ghistpy.nn.cellnet import CellNet
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead

_ROWS = 2048  # nuclei that go through the head at once: their matrices stay in the cache
_IN_MEMORY = 2**28  # bytes of predicted values above which they go to disk, where there is a place


def predict(
    network: CellNet,
    head: ContextHead,
    slide: Slide,
    config: GHISTConfig,
    *,
    spots: bool,
    refine: float = 2.0,
    options: RunOptions | None = None,
    scratch: Scratch | None = None,
) -> Prediction:
    """Types and expression of every nucleus, in the order of the slide's nuclei.

    Parameters
    ----------
    network, head
        A trained pair, made for ``config``.
    slide
        Its stain is measured unless it is given; its targets are not looked at.
    config
        Settings of the network.
    spots
        The head was fitted on spots: its values are per 10,000 counts and are turned into counts with the
        expected total of the nucleus.
    refine
        How much the neighbourhood moves the types; 2 as much as fitted best, 0 not at all.
    options
        Device, batch size, threads, precision; none changes the result but the precision.
    scratch
        Folder for finished blocks; without one they are kept in memory.

    Returns
    -------
    Prediction
        ``expression`` is a :class:`~ghistpy.engine.scratch.StoredRows` in ``scratch`` when it is large.

    Raises
    ------
    UnreadableError
        A tile cannot be read; slide and tile are named.
    ValueError
        ``scratch`` holds blocks that were computed from another image or other labels.
    OSError
        ``scratch`` cannot be written.
    """
    options = options or RunOptions()
    slide = prepare(slide)
    blocks = Blocks() if scratch is None else scratch.blocks("tiles")
    extracted = extract_blocks(network, slide, config, blocks, options)
    return apply_head(
        head, slide, extracted, config, spots=spots, refine=refine, device=options.device, scratch=scratch
    )


def fingerprint(slide: Slide, sample: np.ndarray) -> dict[str, str]:
    """What identifies image and labels of a slide without reading all of the image.

    The image by its size and a ``sample`` of its pixels from windows all over it, see
    :func:`~ghistpy.imaging.stain.sample_pixels`; the labels by id, box, area and centroid of every nucleus.
    Finished blocks also remember every pixel that they came from.
    """
    nuclei = slide.nuclei
    crc = 0
    for array in (nuclei.ids, nuclei.bbox, nuclei.area_px, nuclei.centroid_px):
        crc = zlib.crc32(np.ascontiguousarray(array), crc)
    image = zlib.crc32(sample, zlib.crc32(repr((slide.image.shape, slide.stain)).encode()))
    return {"image": f"{image:08x}", "labels": f"{crc:08x}", "mpp": repr(float(slide.mpp))}


def new_expression(shape: tuple[int, int], scratch: Scratch | None):
    """A zero matrix for predicted values: in memory, or on disk when it is large and there is a place."""
    if scratch is None or 4 * shape[0] * shape[1] <= _IN_MEMORY:
        return np.zeros(shape, np.float32)
    return scratch.rows("expression", shape)


@torch.inference_mode()
def apply_head(
    head: ContextHead,
    slide: Slide,
    extracted: Extracted | ExtractedBlocks,
    config: GHISTConfig,
    *,
    spots: bool,
    refine: float = 2.0,
    device: torch.device | str = "cpu",
    scratch: Scratch | None = None,
) -> Prediction:
    """From features of all nuclei of a slide to the prediction, in squares of the slide and blocks of nuclei."""
    head = head.to(device).eval()
    n, n_types = len(slide.nuclei), head.profiles.shape[0]
    evidence = np.zeros((n, n_types), np.float32)
    morphology = np.zeros((n, N_MORPHOLOGY), np.float32)
    squares = plan_squares(slide, config)
    features = Blocks() if scratch is None else scratch.blocks("features")
    for number, square in enumerate(squares):
        values, logits = square_features(slide, square, extracted, config)
        for part, basis in _basis_blocks(head, values, device):
            own = torch.from_numpy(logits[part]).to(device)
            evidence[square.rows[part]] = head.evidence(own, basis).cpu().numpy()
        morphology[square.rows] = values[:, config.embedding : config.embedding + N_MORPHOLOGY]
        features.save(number, values=values)
    raw = softmax(evidence)
    around = composition(slide, raw, config)
    proba = np.zeros((n, n_types), np.float32)
    total = np.zeros(n, np.float32)
    expression = new_expression((n, head.profiles.shape[1]), scratch)
    for number, square in enumerate(squares):
        for part, basis in _basis_blocks(head, features.load(number)["values"], device):
            rows = square.rows[part]
            own, near = (torch.from_numpy(v[rows]).to(device) for v in (evidence, around))
            refined = head.refine(own, near, refine)
            proba[rows] = refined.cpu().numpy()
            expression[rows], total[rows] = _counts(head, basis, refined, spots)
        features.drop(number)
    return Prediction(
        ids=slide.nuclei.ids,
        expression=expression,
        proba_raw=raw.astype(np.float32),
        proba=proba,
        composition=around.astype(np.float32),
        cell_type_raw=_argmax(raw),
        cell_type=_argmax(proba),
        total=total,
        morphology=morphology,
    )


def _counts(head: ContextHead, basis: Tensor, proba: Tensor, spots: bool) -> tuple[np.ndarray, np.ndarray]:
    """log1p of the expected counts of some nuclei, and their totals over the assay."""
    expression = head.expression(basis, proba).cpu().numpy()
    if not spots:
        return expression, np.expm1(expression).sum(axis=1)
    total = (proba @ head.type_total).cpu().numpy()
    counts = np.expm1(expression) * (total[:, None] / 1e4)
    return np.log1p(counts), total


def _argmax(proba: np.ndarray) -> np.ndarray:
    return proba.argmax(axis=1) if proba.size else np.zeros(len(proba), dtype=np.int64)


def _basis_blocks(
    head: ContextHead, features: np.ndarray, device: torch.device | str
) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, head.basis(torch.from_numpy(features[rows]).to(device))
