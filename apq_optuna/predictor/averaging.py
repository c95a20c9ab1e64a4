"""Two Gaussian processes averaged: one of everything jointly, one that has main effects besides.

Notation:
    n, q    rows observed; rows asked about
    F       features of main effects; the inner product of two rows' is a kernel of variance 1
    K       kernel of the joint process, its scales found by the joint process alone
    a, v    share of the joint kernel; noise variance
    b       shares of the main effects, one for each of D decisions
    K'      kernel of the other process: a K + phi diag(b) phi^T + v I

With few rows nothing tells which of the two holds. Where decisions act by themselves, as in most
problems, a joint process needs several times the trials; where they multiply, main effects promise
too much of what is extreme in several decisions. The evidence picks late, and errs before. So both
are believed alike: means are averaged, and where the two differ the spread is larger. K' shares
the joint process's length scales: the costly kernel is computed once, and the effects are one
product of matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from apq_optuna.predictor.gaussian import NOISE_LIMITS, SIGNAL_LIMITS, GaussianProcess, Posterior

Floats = NDArray[np.floating]

SHARE_PRIOR = (float(np.log(0.5)), 1.0)
"""Mean and standard deviation of the logs of a and of every b."""

ITERATIONS = 10

HALF = 0.5
"""How much main effects are believed in."""


class AveragedProcess:
    """A joint process averaged with one that has main effects besides.

    Args:
        joint: The joint process; fitted here.
        groups: Decision of each feature, `(F,)`, ascending from 0; without features the joint
            process is all there is.
    """

    def __init__(self, joint: GaussianProcess, groups: NDArray[np.intp]) -> None:
        self.joint = joint
        self._groups = groups
        self._starts = np.flatnonzero(np.diff(groups, prepend=-1))
        v, shares = joint.prior_noise, len(self._starts)
        self._mean = np.array([v[0], *[SHARE_PRIOR[0]] * (1 + shares)])
        self._std = np.array([v[1], *[SHARE_PRIOR[1]] * (1 + shares)])
        self._limits = np.log([NOISE_LIMITS, *[SIGNAL_LIMITS] * (1 + shares)])
        self.scales = self._mean.copy()
        """Logs of v, a and b."""
        self._features: Floats = np.zeros((0, len(groups)))

    def fit(
        self,
        z: Floats,
        features: Floats,
        y: Floats,
        *,
        iterations: int = 40,
        unit: float | None = None,
        measures: Floats | None = None,
    ) -> AveragedProcess:
        """As `GaussianProcess.fit`, with the rows' features `(n, F)`."""
        joint = self.joint.fit(z, y, iterations=iterations, unit=unit, measures=measures)
        self._features = features = np.asarray(features, float)
        self.evidence = joint.evidence
        if not len(self._groups):
            return self
        u = (np.asarray(y, float) - joint.centre) / joint.unit
        kernel = joint.kernel(joint.z, joint.z)
        if iterations and len(u) > 1:
            found = minimize(
                self._loss, self._mean, args=(kernel, u), jac=True, method="L-BFGS-B",
                bounds=self._limits, options={"maxiter": ITERATIONS},
            )  # fmt: skip
            if np.isfinite(found.fun):
                self.scales = found.x
        v, self._a, b = self._read(self.scales)
        self._posterior = Posterior(self._sum(kernel, self._a, b), v * joint.relative, u)
        # asked about thousands of rows: laid out for it, and in half the memory
        self._b = b.astype(np.float32)
        self._weighted = np.ascontiguousarray((features * b).T, np.float32)
        other = self._posterior.evidence - len(u) * float(np.log(joint.unit))
        self.evidence = float(np.logaddexp(joint.evidence, other) - np.log(2.0))
        return self

    @property
    def unit(self) -> float:
        """What one standard unit of the targets is."""
        return self.joint.unit

    @property
    def noise(self) -> float:
        """Noise variance, in squared standard units."""
        if not len(self._groups):
            return self.joint.noise
        return (1.0 - HALF) * self.joint.noise + HALF * float(np.exp(self.scales[0]))

    def _read(self, scales: Floats) -> tuple[float, float, Floats]:
        """v, a, and b of each feature."""
        v, a, *b = np.exp(scales)
        return float(v), float(a), np.array(b)[self._groups]

    def _sum(self, kernel: Floats, a: float, b: Floats) -> Floats:
        return np.asarray(a * kernel + (self._features * b) @ self._features.T)

    def _loss(self, scales: Floats, kernel: Floats, u: Floats) -> tuple[float, Floats]:
        """Minus the log posterior of the scales, and its gradient (Rasmussen, eq. 5.8 and 5.9)."""
        v, a, b = self._read(scales)
        matrix = self._sum(kernel, a, b)
        matrix.flat[:: len(u) + 1] += v * self.joint.relative
        try:
            factor = cholesky(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(scales)
        inverse = cho_solve((factor, True), np.eye(len(u)), check_finite=False)
        alpha = inverse @ u
        pull = 0.5 * (inverse - np.outer(alpha, alpha))
        off = (scales - self._mean) / self._std
        loss = 0.5 * float(u @ alpha + off @ off) + float(np.log(np.diag(factor)).sum())
        features = self._features
        each = b * np.einsum("nf,nf->f", features, pull @ features)
        first = [v * float(np.diag(pull) @ self.joint.relative), a * np.vdot(pull, kernel)]
        slopes = np.concatenate([first, np.add.reduceat(each, self._starts)])
        return loss, slopes + off / self._std

    def predict(self, z: Floats, features: Floats) -> tuple[Floats, Floats]:
        """As `GaussianProcess.predict`, with features `(q, F)`; single precision is enough."""
        joint = self.joint
        if not len(self._groups) or not len(joint.z):
            return joint.predict(z)
        cross = joint.kernel(z, joint.z)
        mean, std = joint.posterior(cross, joint.variance)
        cross *= self._a
        features = np.asarray(features, np.float32)
        cross += features @ self._weighted
        own = self._a * joint.variance + features**2 @ self._b
        other, other_std = self._posterior(cross, own)
        mean, std = averaged((mean, std), (other, other_std), HALF)
        return mean * joint.unit + joint.centre, std * joint.unit


def averaged(
    one: tuple[Floats, Floats], other: tuple[Floats, Floats], share: float
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of two beliefs mixed, `share` of them the other."""
    (mean, std), (other_mean, other_std) = one, other
    variance = (1.0 - share) * std**2 + share * other_std**2
    variance += share * (1.0 - share) * (other_mean - mean) ** 2
    return (1.0 - share) * mean + share * other_mean, np.sqrt(variance)
