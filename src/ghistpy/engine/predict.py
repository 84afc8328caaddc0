"""Predict every nucleus of a slide with the default network."""

from __future__ import annotations

import numpy as np
import torch

from ghistpy.data.slide import Slide
from ghistpy.data.windows import N_MORPHOLOGY, prepare
from ghistpy.engine.extract import Extracted, extract
from ghistpy.engine.features import composition, head_features, softmax
from ghistpy.engine.prediction import Prediction
from ghistpy.nn.cellnet import CellNet
from ghistpy.nn.config import GHISTConfig
from ghistpy.nn.head import ContextHead

_ROWS = 16_384  # nuclei that go through the head at once


def predict(
    network: CellNet,
    head: ContextHead,
    slide: Slide,
    config: GHISTConfig,
    *,
    spots: bool,
    refine: float = 2.0,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    workers: int = 1,
    autocast: torch.dtype | None = None,
    progress: bool = False,
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
    device, batch_size, workers, autocast, progress
        As :func:`ghistpy.engine.extract.extract` takes them; none changes the result but ``autocast``.

    Raises
    ------
    UnreadableError
        A tile cannot be read; slide and tile are named.
    """
    slide = prepare(slide)
    extracted = extract(
        network,
        slide,
        config,
        device=device,
        batch_size=batch_size,
        workers=workers,
        autocast=autocast,
        progress=progress,
    )
    return apply_head(head, slide, extracted, config, spots=spots, refine=refine, device=device)


@torch.inference_mode()
def apply_head(
    head: ContextHead,
    slide: Slide,
    extracted: Extracted,
    config: GHISTConfig,
    *,
    spots: bool,
    refine: float = 2.0,
    device: torch.device | str = "cpu",
) -> Prediction:
    """From features of all nuclei of a slide to the prediction, in blocks of nuclei."""
    head = head.to(device).eval()
    features = head_features(slide, extracted, config)
    n, n_types = len(features), head.profiles.shape[0]
    evidence = np.zeros((n, n_types), np.float32)
    for rows, basis in _basis_blocks(head, features, device):
        logits = torch.from_numpy(extracted.logits[rows]).to(device)
        evidence[rows] = head.evidence(logits, basis).cpu().numpy()
    raw = softmax(evidence)
    around = composition(slide, raw, config)
    proba = np.zeros((n, n_types), np.float32)
    expression = np.zeros((n, head.profiles.shape[1]), np.float32)
    for rows, basis in _basis_blocks(head, features, device):
        own, near = (torch.from_numpy(v[rows]).to(device) for v in (evidence, around))
        refined = head.refine(own, near, refine)
        proba[rows] = refined.cpu().numpy()
        expression[rows] = head.expression(basis, refined).cpu().numpy()
    if spots:
        total = proba @ head.type_total.cpu().numpy()
        np.expm1(expression, out=expression)
        expression *= total[:, None] / 1e4
        np.log1p(expression, out=expression)
    else:
        total = np.expm1(expression).sum(axis=1)
    return Prediction(
        ids=slide.nuclei.ids,
        expression=expression,
        proba_raw=raw.astype(np.float32),
        proba=proba,
        composition=around.astype(np.float32),
        cell_type_raw=_argmax(raw),
        cell_type=_argmax(proba),
        total=total.astype(np.float32),
        morphology=extracted.local[:, :N_MORPHOLOGY],
    )


def _argmax(proba: np.ndarray) -> np.ndarray:
    return proba.argmax(axis=1) if proba.size else np.zeros(len(proba), dtype=np.int64)


def _basis_blocks(head: ContextHead, features: np.ndarray, device: torch.device | str):
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, head.basis(torch.from_numpy(features[rows]).to(device))
