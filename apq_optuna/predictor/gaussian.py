"""A Gaussian process for the first few hundred rows, its kernel a sum over parts of the columns.

Notation:
    C, G        columns; length scales: columns of one group share one (a category's choices do)
    P           parts: disjoint ranges of the columns, each with a kernel of its own
    n, q        rows observed; rows asked about
    z           rows as columns, `(n, C)`
    l, s, v     length scales `(G,)`, signal variances `(P,)`, noise variance
    w           measurements behind a row's target, `(n,)`; one each where nothing is said
    K           sum over parts of s_p * matern52(r_p) + v * diag(1 / w),
                with r_p^2 = sum over the part's columns of ((z - z') / l)^2

Scales are found by maximum a posteriori. Length scales have the prior
log l ~ N(log(G_p) / 2 - 1, 1), G_p the groups of the part: it grows with their number, so that a
hundred decisions are not taken for as many sources of detail (Hvarfner, Hellsten and Nardi, ICML
2024, who put it higher; lower was better on every problem of `benchmarks/sampler_race.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from apq_optuna.errors import InvalidArgumentError

Floats = NDArray[np.floating]

LENGTH_LIMITS = (0.02, 200.0)
SIGNAL_LIMITS = (1e-4, 20.0)
NOISE_LIMITS = (1e-6, 1.0)
LENGTH_PRIOR = (-1.0, 1.0)
SIGNAL_PRIOR = (0.0, 1.0)
NOISE_PRIOR = (-6.0, 2.0)
"""Mean and standard deviation of logs, targets being in standard units."""


class GaussianProcess:
    """Exact regression with Matern 5/2 kernels.

    Args:
        parts: The group of each column, part by part; groups are counted from 0 in each.
        noise: Prior mean and standard deviation of the log noise variance.
        zero_mean: Whether values far from all rows are 0 rather than the mean of the rows.
    """

    def __init__(
        self,
        parts: Sequence[NDArray[np.intp]],
        *,
        noise: tuple[float, float] = NOISE_PRIOR,
        zero_mean: bool = False,
    ) -> None:
        widths = [len(groups) for groups in parts]
        counts = [int(groups.max(initial=-1)) + 1 for groups in parts]
        starts, firsts = np.cumsum([0, *widths]), np.cumsum([0, *counts])
        self.columns = int(starts[-1])
        self._slices = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self._group = np.concatenate(
            [np.asarray(g, np.intp) + first for g, first in zip(parts, firsts[:-1], strict=True)]
        )
        self._groups, self._parts = int(firsts[-1]), len(parts)
        length = [np.full(c, 0.5 * np.log(max(c, 1)) + LENGTH_PRIOR[0]) for c in counts]
        self._mean = np.concatenate([*length, np.full(len(parts), SIGNAL_PRIOR[0]), [noise[0]]])
        self.prior_noise = noise
        self._std = np.concatenate(
            [
                np.full(self._groups, LENGTH_PRIOR[1]),
                np.full(len(parts), SIGNAL_PRIOR[1]),
                [noise[1]],
            ]
        )
        self.scales = self._mean.copy()
        """Logs of l, s and v."""
        self.zero_mean = zero_mean
        self.z: Floats = np.zeros((0, self.columns))
        self.centre, self.unit = 0.0, 1.0
        self.relative: Floats = np.ones(0)

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        z: Floats,
        y: Floats,
        *,
        iterations: int = 40,
        unit: float | None = None,
        measures: Floats | None = None,
    ) -> GaussianProcess:
        """Finds scales for rows `(n, C)` and finite targets `(n,)`, starting from the prior's.

        Args:
            z, y: The rows.
            iterations: Of L-BFGS; 0 keeps the scales and takes in the rows only.
            unit: What one standard unit of the targets is; by default their deviation.
            measures: w, of how many measurements each target is the mean; by default 1.
        """
        z, y = np.asarray(z, float), np.asarray(y, float)
        if z.ndim != 2 or z.shape[1] != self.columns or y.shape != (len(z),):
            raise InvalidArgumentError(
                f"rows {z.shape} and targets {y.shape}: expected (n, {self.columns}) and (n,)"
            )
        self.z = z
        self.centre = float(y.mean()) if len(y) and not self.zero_mean else 0.0
        self.unit = max(float(y.std()) if len(y) and unit is None else unit or 1.0, 1e-9)
        u = (y - self.centre) / self.unit
        self.relative = relative_noise(measures, len(u))
        if iterations and len(u) > 1:
            limits = [LENGTH_LIMITS] * self._groups + [SIGNAL_LIMITS] * self._parts
            found = minimize(
                self._loss, self._mean, args=(u,), jac=True, method="L-BFGS-B",
                bounds=[tuple(np.log(limit)) for limit in [*limits, NOISE_LIMITS]],
                options={"maxiter": iterations},
            )  # fmt: skip
            if np.isfinite(found.fun):
                self.scales = found.x
        self._condition(u)
        return self

    def _read(self, scales: Floats) -> tuple[Floats, Floats, float]:
        """1 / l of each column, s, v."""
        inverse = np.exp(-scales[: self._groups])[self._group]
        return inverse, np.exp(scales[self._groups : -1]), float(np.exp(scales[-1]))

    def _loss(self, scales: Floats, u: Floats) -> tuple[float, Floats]:
        """Minus the log posterior of the scales, and its gradient (Rasmussen, eq. 5.8 and 5.9)."""
        inverse_length, signal, noise = self._read(scales)
        scaled = self.z * inverse_length
        n = len(u)
        matrix = np.diag(noise * self.relative)
        shapes, slopes = [], []
        for part, s in zip(self._slices, signal, strict=True):
            root5, decay = _root5(scaled[:, part], scaled[:, part])
            shapes.append((1.0 + root5 + root5**2 / 3.0) * decay)
            # d matern52 / d r^2 = -5/6 (1 + sqrt(5) r) exp(-sqrt(5) r)
            slopes.append((-5.0 / 6.0) * (1.0 + root5) * decay)
            matrix += s * shapes[-1]
        try:
            factor = cholesky(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(scales)
        inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
        alpha = inverse @ u
        loss = 0.5 * float(u @ alpha) + float(np.log(np.diag(factor)).sum())
        pull = 0.5 * (inverse - np.outer(alpha, alpha))  # d loss / d K
        along = np.empty(self.columns)
        gradient = np.empty_like(scales)
        for p, (part, s) in enumerate(zip(self._slices, signal, strict=True)):
            weight, z = s * pull * slopes[p], scaled[:, part]
            # sum_ij weight_ij (z_i - z_j)^2 for each column
            along[part] = 2.0 * (weight.sum(1) @ z**2 - (z * (weight @ z)).sum(0))
            gradient[self._groups + p] = s * float((pull * shapes[p]).sum())
        gradient[: self._groups] = -2.0 * np.bincount(self._group, along, minlength=self._groups)
        gradient[-1] = noise * float(np.diag(pull) @ self.relative)
        off = (scales - self._mean) / self._std
        return loss + 0.5 * float(off @ off), gradient + off / self._std

    def _condition(self, u: Floats) -> None:
        self._inverse_length, self._signal, self.noise = self._read(self.scales)
        self.posterior = Posterior(self.kernel(self.z, self.z), self.noise * self.relative, u)
        self.evidence = self.posterior.evidence - len(u) * float(np.log(self.unit))
        """Log density of the rows' targets, in their own units."""

    def kernel(self, a: Floats, b: Floats) -> Floats:
        """K without noise between rows `(q, C)` and `(n, C)`, in squared standard units."""
        a, b = a * self._inverse_length, b * self._inverse_length
        total = np.zeros((len(a), len(b)))
        for part, s in zip(self._slices, self._signal, strict=True):
            root5, decay = _root5(a[:, part], b[:, part])
            # s (1 + root5 + root5^2 / 3) exp(-root5) in place: memory is what is slow here
            shape = root5 * (1.0 / 3.0)
            shape += 1.0
            shape *= root5
            shape += 1.0
            shape *= decay
            shape *= s
            total += shape
        return total

    # ------------------------------------------------------------------ prediction

    def predict(self, z: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the noiseless value at rows `(q, C)`, both `(q,)`."""
        z = np.asarray(z, float)
        if not len(self.z):
            return np.full(len(z), self.centre), np.full(len(z), self.variance**0.5 * self.unit)
        mean, std = self.posterior(self.kernel(z, self.z), self.variance)
        return mean * self.unit + self.centre, std * self.unit

    @property
    def variance(self) -> float:
        """Of the noiseless value before any row is seen, in squared standard units."""
        return float(np.exp(self.scales[self._groups : -1]).sum())


class Posterior:
    """What n targets tell of values elsewhere.

    Args:
        kernel: K without noise, `(n, n)`.
        noise: v / w, `(n,)`.
        u: Targets, `(n,)`.

    Attributes:
        evidence: Log density of the targets.
    """

    def __init__(self, kernel: Floats, noise: Floats, u: Floats) -> None:
        matrix = kernel + np.diag(np.maximum(noise, 1e-6))
        factor = cholesky(matrix, lower=True, check_finite=False)
        self._alpha = cho_solve((factor, True), u, check_finite=False) if len(u) else u
        # asked about thousands of rows, a product is several times faster than as many solves
        self._half = solve_triangular(factor, np.eye(len(u)), lower=True, check_finite=False).T
        self._half = self._half.copy()
        self.evidence = -0.5 * float(u @ self._alpha) - float(np.log(np.diag(factor)).sum())
        self.evidence -= 0.5 * len(u) * float(np.log(2.0 * np.pi))

    def __call__(self, cross: Floats, variance: Floats | float) -> tuple[Floats, Floats]:
        """Mean and standard deviation where the kernel with the rows is `(q, n)`, both `(q,)`."""
        half = cross @ self._half
        explained = np.einsum("qn,qn->q", half, half)
        return cross @ self._alpha, np.sqrt(np.maximum(variance - explained, 1e-10))


def relative_noise(measures: Floats | None, n: int) -> Floats:
    """Noise variance of each of n targets as a share of a single measurement's."""
    return np.ones(n) if measures is None else 1.0 / np.asarray(measures, float)


def _root5(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """sqrt(5) r and exp(-sqrt(5) r) between rows of scaled columns, as one matrix product."""
    root5 = a @ (-10.0 * b.T)
    root5 += 5.0 * np.einsum("qc,qc->q", a, a)[:, None]
    root5 += 5.0 * np.einsum("nc,nc->n", b, b)[None]
    np.maximum(root5, 0.0, out=root5)
    np.sqrt(root5, out=root5)
    decay = np.negative(root5)
    return root5, np.exp(decay, out=decay)
