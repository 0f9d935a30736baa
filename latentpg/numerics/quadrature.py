r"""Gauss-Hermite nodes of the standard normal, in one and several dimensions.

Weights of outer nodes fall below the smallest float64 from some 380 nodes on, and an integrand that is divided by the
normal's density needs them all the same: they are computed and handed on as logarithms.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from latentpg.errors import OptionError

_LARGE = 1e150
"""Beyond this the recurrence is scaled down; one step multiplies by less than 1e150."""


def hermite_grid(num_nodes: int, dimensions: int) -> tuple[Float[Tensor, "M D"], Float[Tensor, " M"]]:
    r"""Return nodes and log-weights for the standard normal: :math:`\sum_m W_m f(x_m) \approx \mathbb E f(X)`.

    M is ``num_nodes ** dimensions``; the rule is exact for polynomials of degree below ``2 * num_nodes`` in each
    coordinate (Golub and Welsch, "Calculation of Gauss Quadrature Rules", 1969). Everything is float64.

    >>> nodes, log_weight = hermite_grid(4, 1)
    >>> round(float((log_weight.exp() * nodes[:, 0] ** 4).sum()), 10)
    3.0
    """
    if num_nodes < 1 or dimensions < 0:
        raise OptionError(
            "hermite_grid()",
            "`num_nodes` and `dimensions`",
            expected="integers >= 1 and >= 0",
            got=f"{num_nodes} and {dimensions}",
        )
    nodes, log_weights = _rule(num_nodes)
    x, log_weight = torch.from_numpy(nodes), torch.from_numpy(log_weights)
    grid = torch.cartesian_prod(*[x] * dimensions) if dimensions else torch.zeros(1, 0, dtype=torch.float64)
    product = torch.cartesian_prod(*[log_weight] * dimensions) if dimensions else torch.zeros(1, 0, dtype=torch.float64)
    count = num_nodes**dimensions
    return grid.reshape(count, dimensions), product.reshape(count, dimensions).sum(-1)


def _rule(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Return the n nodes, eigenvalues of the Jacobi matrix, and :math:`\log W = -\log(n\,h_{n-1}(x)^2)`.

    The eigenvectors would give weights too, but those below 1e-32 only as rounding.
    """
    above = np.sqrt(np.arange(1.0, size))
    nodes = np.linalg.eigvalsh(np.diag(above, 1) + np.diag(above, -1))
    ratio, _ = _polynomials(nodes, size)
    nodes = nodes - ratio / np.sqrt(size)  # Newton: h_n' is sqrt(n) h_{n-1}
    nodes = (nodes - nodes[::-1]) / 2
    _, log_size = _polynomials(nodes, size)
    log_weight = -2 * log_size
    log_weight = (log_weight + log_weight[::-1]) / 2
    return nodes, log_weight - np.logaddexp.reduce(log_weight)  # which leaves log n out


def _polynomials(x: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Return :math:`h_n(x) / h_{n-1}(x)` and :math:`\log|h_{n-1}(x)|` of the orthonormal Hermite polynomials.

    :math:`\sqrt{k+1}\,h_{k+1} = x h_k - \sqrt k\,h_{k-1}`, scaled down before it overflows.
    """
    before, here, log_scale = np.zeros_like(x), np.ones_like(x), np.zeros_like(x)
    for k in range(size):
        before, here = here, (x * here - np.sqrt(k) * before) / np.sqrt(k + 1)
        large = np.abs(here) > _LARGE
        for part in (before, here):
            part[large] /= _LARGE
        log_scale[large] += np.log(_LARGE)
    return here / before, np.log(np.abs(before)) + log_scale
