"""Gauss-Hermite nodes of the standard normal, in one and several dimensions."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def hermite_grid(num_nodes: int, dimensions: int) -> tuple[Float[Tensor, "M D"], Float[Tensor, " M"]]:
    r"""Return nodes and log-weights for the standard normal: :math:`\sum_m W_m f(x_m) \approx \mathbb E f(X)`.

    M is ``num_nodes ** dimensions``; the rule is exact for polynomials of degree below ``2 * num_nodes`` in each
    coordinate (Golub and Welsch, 1969). Everything is float64.

    >>> nodes, log_weight = hermite_grid(4, 1)
    >>> round(float((log_weight.exp() * nodes[:, 0] ** 4).sum()), 10)
    3.0
    """
    nodes, weight = np.polynomial.hermite_e.hermegauss(num_nodes)
    x = torch.from_numpy(nodes)
    log_weight = torch.from_numpy(weight / weight.sum()).log()
    grid = torch.cartesian_prod(*[x] * dimensions) if dimensions else torch.zeros(1, 0, dtype=torch.float64)
    product = torch.cartesian_prod(*[log_weight] * dimensions) if dimensions else torch.zeros(1, 0, dtype=torch.float64)
    count = num_nodes**dimensions
    return grid.reshape(count, dimensions), product.reshape(count, dimensions).sum(-1)
