"""Affine maps of the plane: checked, taken apart, applied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parts:
    """An affine map as scale, rotation, shear and shift.

    ``scale`` along its two axes, both above 0; ``rotation_deg`` from x towards y; ``shear_deg`` the angle by
    which its axes are not at right angles; ``mirrored`` when it turns the plane over.
    """

    scale: tuple[float, float]
    rotation_deg: float
    shear_deg: float
    shift: tuple[float, float]
    mirrored: bool

    @property
    def mean_scale(self) -> float:
        """Square root of the factor by which areas grow."""
        return float(np.sqrt(self.scale[0] * self.scale[1] * np.cos(np.radians(self.shear_deg))))


def check_affine(matrix: object, name: str) -> np.ndarray:
    """A (3, 3) or (2, 3) affine matrix on (x, y, 1) as (3, 3) float64, or an error.

    Raises
    ------
    ValueError
        Another shape, values that are no finite numbers, a last row other than 0 0 1, or a singular matrix.
    """
    try:
        array = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a matrix of 3 x 3 numbers, got {matrix!r}") from error
    if array.shape == (2, 3):
        array = np.vstack([array, [0.0, 0.0, 1.0]])
    if array.shape != (3, 3):
        raise ValueError(f"{name}: expected an affine matrix of 3 x 3 (or 2 x 3) numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of its 9 numbers are NaN or infinite")
    if not np.allclose(array[2], [0, 0, 1], atol=1e-9):
        raise ValueError(f"{name}: the last row of an affine matrix is 0 0 1, got {array[2].tolist()}")
    singular = np.linalg.svd(array[:2, :2], compute_uv=False)
    if singular[0] == 0 or singular[1] < 1e-6 * singular[0]:
        raise ValueError(
            f"{name}: the matrix is singular (it maps the plane onto a line): {array[:2, :2].tolist()}; export it again"
        )
    return array


def take_apart(matrix: np.ndarray) -> Parts:
    """Scale, rotation, shear and shift of a (3, 3) affine matrix that is not singular.

    Examples
    --------
    >>> import numpy as np
    >>> from ghistpy.geometry.affine import take_apart
    >>> take_apart(np.array([[0.0, -2.0, 5.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).rotation_deg
    90.0
    """
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    determinant = a * d - b * c
    sign = 1.0 if determinant > 0 else -1.0
    first, second = np.hypot(a, c), np.hypot(b, d)
    cosine = np.clip((a * b + c * d) / (first * second), -1, 1)
    return Parts(
        (float(first), float(second)),
        float(np.degrees(np.arctan2(c, a))),
        float(90 - np.degrees(np.arccos(cosine * sign))),
        (float(matrix[0, 2]), float(matrix[1, 2])),
        bool(determinant < 0),
    )


def apply_affine(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Points (n, 2) x, y under a (3, 3) matrix."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]
