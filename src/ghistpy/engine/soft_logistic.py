"""Multinomial logistic regression in which averages over nuclei are observed."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse


def cross_entropy(proba: np.ndarray, target: np.ndarray) -> float:
    """Mean over rows; target rows sum to 1."""
    return float(-(target * np.log(np.maximum(proba, 1e-6))).sum(axis=1).mean())


class SoftLogistic:
    """Types of nuclei whose average over an instance is known: L-BFGS from a fixed start, so deterministic.

    basis (m, K) of nuclei; pool (S, m) averages them; share (S, C).
    """

    def __init__(self, basis: np.ndarray, pool: sparse.csr_array, share: np.ndarray) -> None:
        self.basis, self.pool, self.share = torch.from_numpy(basis), pool, share

    def _select(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Basis of the nuclei of those instances, and the matrix that averages them."""
        part = self.pool[rows]
        nuclei = np.unique(part.indices)
        part = part[:, nuclei].tocoo()
        pool = torch.sparse_coo_tensor(
            np.stack(part.coords), torch.from_numpy(part.data.astype(np.float32)), part.shape, check_invariants=False
        )
        return self.basis[nuclei], pool.coalesce()

    @staticmethod
    def _mean(solution: tuple[torch.Tensor, ...], selected: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (weight, bias), (basis, pool) = solution, selected
        return torch.sparse.mm(pool, torch.softmax(basis @ weight + bias, dim=1))

    def cost(self, solution: tuple[torch.Tensor, ...], rows: np.ndarray) -> float:
        """Cross entropy of those instances."""
        with torch.no_grad():
            return cross_entropy(self._mean(solution, self._select(rows)).numpy(), self.share[rows])

    def solve(self, rows: np.ndarray, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (K, C) and bias (C,) that explain those instances best."""
        share = torch.from_numpy(np.ascontiguousarray(self.share[rows]))
        weight = torch.zeros(self.basis.shape[1], share.shape[1], requires_grad=True)
        bias = torch.zeros(share.shape[1], requires_grad=True)
        selected = self._select(rows)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            mean = self._mean((weight, bias), selected)
            loss = -(share * torch.log(mean.clamp_min(1e-6))).sum(dim=1).mean() + penalty * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return weight.detach(), bias.detach()
