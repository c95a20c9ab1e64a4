"""Expected hypervolume improvement when costs are known and only accuracy is uncertain.

Notation:
    n       candidates
    m       costs, 0 to 2, minimised; accuracy is maximised
    c       costs of a candidate, `(n, m)`
    mu, sd  mean and standard deviation of its accuracy, `(n,)`
    t_0     reference accuracy; t_1 < ... < t_K the accuracies of the front
    r       reference costs, `(m,)`
    V_k(c)  volume in cost space between c and r that no front point of accuracy >= t_{k+1}
    dominates

    EHVI(x) = sum_k V_k(c(x)) * integral of P(accuracy > t) over [t_k, t_{k+1}]

The last interval is open. With a normal distribution the integral above a level is
psi(t) = sd * (phi(z) - z * (1 - Phi(z))), z = (t - mu) / sd, so each term is psi(t_k) -
psi(t_{k+1}).
The sum is exact: integrate the gain over accuracy first, and the volume in cost space is constant
between two neighbouring accuracies of the front.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.search.pareto import nondominated

Floats = NDArray[np.floating]


OUTCOME_SPREAD = 0.3
"""Share of the spread that sampled outcomes have. Objectives are predicted apart, but their errors
go together: drawn with the full spread, some corner of the space always looks good in all of
them."""

NO_GAIN = 1e-12


class KnownCostEHVI:
    """The acquisition for one front.

    Args:
        accuracies: Of the measured trials, `(p,)`; p may be 0.
        costs: Of the measured trials, `(p, m)` with m up to 2.
        reference_accuracy: t_0.
        reference_costs: r.
    """

    def __init__(
        self,
        accuracies: Floats,
        costs: Floats,
        *,
        reference_accuracy: float,
        reference_costs: Floats,
    ) -> None:
        self.r = np.asarray(reference_costs, float)
        if self.r.shape[0] > 2:
            raise InvalidArgumentError(
                f"{self.r.shape[0]} known costs: the closed form is for at most 2"
            )
        accuracies = np.asarray(accuracies, float)
        costs = np.asarray(costs, float).reshape(len(accuracies), len(self.r))
        inside = np.asarray((accuracies > reference_accuracy) & (costs < self.r).all(axis=1))
        points = np.column_stack([-accuracies[inside], costs[inside]])
        front = points[nondominated(points)] if len(points) else points
        levels = np.unique(-front[:, 0])
        self.t = np.concatenate([[reference_accuracy], levels])
        # stairs[k]: the front points of accuracy >= t_{k+1}; none for the open interval
        self._lay_stairs([front[-front[:, 0] >= level, 1:] for level in levels])

    def _lay_stairs(self, above: list[Floats]) -> None:
        """Lower envelopes in cost space, one a level, padded to one array.

        Along the first cost, step j of level k runs from `left` to `right` at height `top`: the
        least second cost of the points further left (r where there is none).
        """
        m = len(self.r)
        if m == 0:
            # nothing but accuracy: only above the best level is there anything to gain
            self.open = np.array([0.0] * len(above) + [1.0])
            return
        if m == 1:
            self.top = np.array([points.min() for points in above] + [self.r[0]])
            return
        stairs = []
        for points in above:
            steps = points[nondominated(points)]
            stairs.append(steps[np.argsort(steps[:, 0])])
        width = max([len(s) for s in stairs], default=0) + 1
        levels = len(stairs) + 1
        self.left = np.full((levels, width), self.r[0])
        self.right = np.full((levels, width), self.r[0])
        self.top = np.full((levels, width), self.r[1])
        self.left[:, 0] = -np.inf
        for k, steps in enumerate(stairs):
            j = len(steps)
            self.left[k, 1 : j + 1] = steps[:, 0]
            self.right[k, :j] = steps[:, 0]
            self.top[k, 1 : j + 1] = steps[:, 1]

    def volumes(self, costs: Floats) -> Floats:
        """V_k(c), `(n, K + 1)`: length, area, or 1 in an open interval without costs."""
        costs = np.asarray(costs, float)
        if len(self.r) == 0:
            return np.broadcast_to(self.open, (len(costs), len(self.open)))
        if len(self.r) == 1:
            return np.maximum(self.top - costs, 0.0)
        x, y = costs[:, :1, None], costs[:, 1:, None]
        length = np.maximum(self.right - np.maximum(self.left, x), 0.0)
        height = np.maximum(self.top - y, 0.0)
        return np.asarray(np.einsum("nkj,nkj->nk", length, height))

    def __call__(self, mean: Floats, std: Floats, costs: Floats) -> Floats:
        """EHVI of candidates, `(n,)`, in accuracy times the costs' units.

        A candidate with an infinite cost has none. A standard deviation of 0 gives the exact gain.
        """
        finite = np.asarray(np.isfinite(costs).all(axis=1))
        safe = np.where(finite[:, None], costs, self.r)
        above = expected_excess(self.t[None, :], mean[:, None], std[:, None])
        share = above - np.concatenate([above[:, 1:], np.zeros((len(above), 1))], axis=1)
        return np.where(finite, (self.volumes(safe) * np.maximum(share, 0.0)).sum(axis=1), 0.0)


def expected_excess(level: Floats, mean: Floats, std: Floats) -> Floats:
    """E[max(X - level, 0)] of a normal X: the integral of P(X > t) from `level` up."""
    std = np.maximum(std, 1e-12)
    z = (level - mean) / std
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    tail = ndtr(-z)
    return np.asarray(std * np.maximum(density - z * tail, 0.0))


class SampledEHVI:
    """Expected hypervolume improvement by sampling, for several predicted objectives.

    Hypervolume is an expectation over directions of the farthest point along each (Zhang and
    Golovin, ICML 2020, lemma 5): improvement along sampled directions, averaged over sampled
    outcomes, estimates its expected growth. All objectives are minimised.

    Args:
        values: Measured, `(p, m)`.
        reference: `(m,)`.
        directions, outcomes: Numbers of samples.
        rng: Decides them once, so that candidates are compared on equal terms.
    """

    def __init__(
        self,
        values: Floats,
        reference: Floats,
        rng: np.random.Generator,
        *,
        directions: int = 128,
        outcomes: int = 4,
    ) -> None:
        self.reference = np.asarray(reference, float)
        m = len(self.reference)
        normal = np.abs(rng.standard_normal((directions, m))) + 1e-9
        # by what a distance along an objective is multiplied; dividing takes several times as long
        self._inverse = np.linalg.norm(normal, axis=1) / normal.T
        half = rng.standard_normal((-(-outcomes // 2), m))
        self.noise = np.concatenate([half, -half])
        self.best = self._reach(np.asarray(values, float)).max(axis=0, initial=0.0)
        self._volume = self.best**m

    def _reach(self, values: Floats) -> Floats:
        """`(n, directions)`: how far each point is from the reference along each direction."""
        left = (self.reference - values).T[:, :, None]
        reach = left[0] * self._inverse[0]
        other = np.empty_like(reach)
        for distance, inverse in zip(left[1:], self._inverse[1:], strict=True):
            np.minimum(reach, np.multiply(distance, inverse, out=other), out=reach)
        return np.asarray(reach)

    def __call__(self, mean: Floats, std: Floats) -> Floats:
        """Estimated improvement `(n,)`, up to a constant, of `(n, m)` means and deviations.

        Where no outcome improves, minus a little of what an optimistic one lacks: a search can
        then still tell candidates apart.
        """
        m = len(self.reference)
        total = np.zeros(len(mean))
        for noise in self.noise:
            reach = self._reach(mean + std * (OUTCOME_SPREAD * noise))
            np.maximum(reach, 0.0, out=reach)
            volume = reach * reach if m > 1 else reach
            for _ in range(m - 2):  # a power of floats takes several times as long
                volume *= reach
            volume -= self._volume
            total += np.maximum(volume, 0.0, out=volume).mean(axis=1)
        total /= len(self.noise)
        if (total > NO_GAIN).all():
            return total
        lack = np.minimum(
            (self._reach(mean - 2.0 * OUTCOME_SPREAD * std) - self.best).max(axis=1), 0.0
        )
        return np.where(total > NO_GAIN, total, NO_GAIN * lack)
