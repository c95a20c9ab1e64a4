"""Architectures of a once-for-all network as choices among candidates, and what each costs.

Notation:
    D       decisions of the space; a genotype is `(D,)`
    C       choices: one a block among its operations, one a stage among its depths
    N       most candidates of a choice; those that one lacks are left out by `mask`
    M       architectures of a front, none of which is both dearer and less probable than another
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apq_optuna.errors import InvalidArgumentError, MissingCostError, SpaceError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes, MobileSubnet
from apq_optuna.space import SearchSpace

Floats = NDArray[np.float64]
Picks = NDArray[np.intp]
"""`(C,)`: a candidate of every choice."""

FRONT = 4096
"""Most architectures of a front; a longer one is thinned evenly, its cheapest kept."""


@dataclass(frozen=True)
class Choice:
    """One choice among candidates.

    Attributes:
        name: The block that an operation is of, or the decision of a depth.
        columns: The decisions it sets: (kernel, channels) or (depth,).
        candidates: `(k, len(columns)) int32`, choice indices, the smallest first.
        governor: Position of the depth that the block's presence hangs on; -1 is always there.
        least: The depth's first candidate at which the block is there.
    """

    name: str
    columns: tuple[int, ...]
    candidates: NDArray[np.int32]
    governor: int = -1
    least: int = 0


@dataclass(frozen=True)
class _Front:
    """Architectures by ascending cost and descending loss: `(M,)`, `(M,)`, `(M, C)`."""

    costs: Floats
    losses: Floats
    picks: Picks

    @classmethod
    def of(cls, costs: Floats, losses: Floats, picks: Picks) -> _Front:
        """The undominated ones of some architectures."""
        order = np.lexsort((losses, costs))
        best = np.minimum.accumulate(losses[order])
        kept = order[np.append(True, losses[order][1:] < best[:-1])]
        if len(kept) > FRONT:
            kept = kept[np.linspace(0, len(kept) - 1, FRONT).round().astype(np.intp)]
        return cls(costs[kept], losses[kept], picks[kept])


class Paths:
    """The choices of a space of the mobile family, and one cost of their candidates.

    Costs are sums over layers, and the layers of a block hang on its own choice alone: its input
    and output channels are fixed. So a block's candidates differ by as much in every network,
    which is read off rows that differ in this block (Cai et al., ICLR 2019, section 3.3).

    Args:
        space: The space.
        table: Costs on one device. What a correction adds is the same for every network.
        metric: Which of the costs.
        bits: Bit-width of every searched layer.
        widths: Channel choices of a block that are candidates, evenly spaced from its smallest to
            its largest; None is all of them.

    Attributes:
        choices: The C choices that have more than one candidate.
        mask: `(C, N) bool`: which candidates there are.
        costs: `(C, N)`: what a candidate costs beyond the choice's first; of a depth, what its
            blocks cost at their first candidates.
        fixed: The cost of the network of all first candidates.
        place: Position of the choice of a block, by its name.
        ends: Of each choice that is a depth, the block after which each candidate ends.

    Raises:
        InvalidArgumentError: An unknown metric, or bits that the space does not have.
        MissingCostError: The device has no cost for some candidate at these bits.
        SpaceError: There is no choice.
    """

    def __init__(
        self, space: SearchSpace, table: CostTable, metric: str, bits: int, widths: int | None
    ) -> None:
        if metric not in table.metric_names:
            raise InvalidArgumentError(
                f"metric={metric!r}: the table has {list(table.metric_names)}"
            )
        if bits not in space.bits:
            raise InvalidArgumentError(f"bits={bits!r}: the space has {list(space.bits)}")
        self.space, self.metric = space, metric
        self._compiled = table.compile(space)
        self._column = table.metric_names.index(metric)
        self._base = np.zeros(len(space.decisions), np.int32)
        for column, decision in enumerate(space.decisions):
            if decision.quantization:
                self._base[column] = decision.index_of(bits)
        self.choices, self.place, self.ends = _choices(space, widths)
        if not self.choices:
            raise SpaceError(f"{space!r} has one architecture: there is nothing to choose")
        most = max(len(choice.candidates) for choice in self.choices)
        counts = np.array([len(choice.candidates) for choice in self.choices])
        self.mask = np.arange(most) < counts[:, None]
        self._governed: dict[int, list[int]] = {place: [] for place in self.ends}
        for place, choice in enumerate(self.choices):
            if choice.governor >= 0:
                self._governed[choice.governor].append(place)
        self._price_candidates(table.device, bits)

    def _price_candidates(self, device: str, bits: int) -> None:
        self.fixed = float(self.price(self._base[None])[0])
        self.costs = np.zeros(self.mask.shape)
        for place, choice in enumerate(self.choices):
            rows = np.repeat(self._base[None], len(choice.candidates), axis=0)
            if choice.governor >= 0:
                rows[:, self.choices[choice.governor].columns[0]] = choice.least
            rows[:, choice.columns] = choice.candidates
            prices = self.price(rows)
            if not np.isfinite(prices).all():
                raise MissingCostError(
                    f"bits={bits}: the device {device!r} has no cost for some candidate of "
                    f"{choice.name}"
                )
            self.costs[place, : len(rows)] = prices - prices[0]

    def price(self, rows: Genotypes) -> Floats:
        """`(n, D)` genotypes to `(n,)` costs, from the compiled table."""
        return np.asarray(self._compiled(rows)[:, self._column])

    def row(self, picks: Picks) -> Genotypes:
        """`(C,)` picks as a canonical genotype `(D,)`."""
        row = self._base.copy()
        for choice, pick in zip(self.choices, picks.tolist(), strict=True):
            row[list(choice.columns)] = choice.candidates[pick]
        return np.asarray(self.space.canonical(row[None])[0])

    def operation(self, place: int, pick: int) -> tuple[int, int]:
        """(kernel, channels) of a candidate of a block."""
        choice = self.choices[place]
        kernel, channels = (
            int(self.space.decisions[column].choices[index])
            for column, index in zip(choice.columns, choice.candidates[pick], strict=True)
        )
        return kernel, channels

    def subnet(self, picks: Picks) -> MobileSubnet:
        """`(C,)` picks as a network."""
        subnet = self.space.decode(self.row(picks))
        assert isinstance(subnet, MobileSubnet)
        return subnet

    def cost(self, picks: Picks) -> float:
        """The cost of one network, from the compiled table."""
        return float(self.price(self.row(picks)[None])[0])

    # ------------------------------------------------------------------ under a target

    def cheapest(self) -> Picks:
        """The candidates of the cheapest network, `(C,)`."""
        return np.asarray(self._front(np.zeros(self.mask.shape)).picks[0])

    def most_probable(self, log_probabilities: Floats, target: float) -> Picks:
        """The most probable architecture that costs at most `target`.

        It loses least, summed over the choices that are in use, of the logarithm of each one's
        largest probability. A multiple-choice knapsack: choices are added one by one to the front
        of cost and loss. Exact while no front has more than `FRONT` architectures.

        Args:
            log_probabilities: `(C, N)`.
            target: At least the cost of the cheapest network.

        Returns:
            `(C,)`.
        """
        known = np.where(self.mask, log_probabilities, -np.inf)
        front = self._front(known.max(axis=1, keepdims=True) - known)
        # the table sums in another order: what is about at the target is priced by it
        last = np.searchsorted(front.costs, target * (1 + 1e-9), side="right")
        for picks in front.picks[:last][::-1]:
            if self.cost(picks) <= target:
                return np.asarray(picks)
        return self.cheapest()

    def _front(self, losses: Floats) -> _Front:
        """All choices' front; `losses` is `(C, N)`."""
        front = _Front(
            np.array([self.fixed]), np.zeros(1), np.zeros((1, len(self.choices)), np.intp)
        )
        for place, choice in enumerate(self.choices):
            if place in self._governed:
                front = self._with_depth(front, place, losses)
            elif choice.governor < 0:
                front = self._with(front, place, range(len(choice.candidates)), losses)
        return front

    def _with_depth(self, front: _Front, place: int, losses: Floats) -> _Front:
        parts = []
        for depth in range(len(self.choices[place].candidates)):
            part = self._with(front, place, range(depth, depth + 1), losses)
            for governed in self._governed[place]:
                choice = self.choices[governed]
                if choice.least <= depth:
                    part = self._with(part, governed, range(len(choice.candidates)), losses)
            parts.append(part)
        costs, lost = (np.concatenate([getattr(p, n) for p in parts]) for n in ("costs", "losses"))
        return _Front.of(costs, lost, np.concatenate([part.picks for part in parts]))

    def _with(self, front: _Front, place: int, candidates: range, losses: Floats) -> _Front:
        """A front with some candidates of one more choice."""
        these = list(candidates)
        costs = (front.costs[:, None] + self.costs[place, these]).ravel()
        lost = (front.losses[:, None] + losses[place, these]).ravel()
        picks = np.repeat(front.picks, len(these), axis=0)
        picks[:, place] = np.tile(these, len(front.picks))
        return _Front.of(costs, lost, picks)


def expected_cost(paths: Paths, p: Tensor) -> Tensor:
    """E, the mean cost of networks whose candidates are drawn by `p`, `(C, N)`; differentiable.

    Eqs. 5 and 6; a block beyond the shortest depth costs as often as the depth reaches it.
    """
    every = (p * torch.from_numpy(paths.costs)).sum(1)
    total = every.new_tensor(paths.fixed)
    for place, choice in enumerate(paths.choices):
        present = 1.0 if choice.governor < 0 else p[choice.governor, choice.least :].sum()
        total = total + present * every[place]
    return total


def _choices(
    space: SearchSpace, widths: int | None
) -> tuple[tuple[Choice, ...], dict[str, int], dict[int, tuple[str, ...]]]:
    """`Paths.choices`, `Paths.place` and `Paths.ends`."""
    found: list[Choice] = []
    depths: dict[str, int] = {}
    names: list[str] = []
    ends: dict[int, list[str]] = {}
    for column, decision in enumerate(space.decisions):
        if decision.role == "depth":
            depths[decision.name] = len(found)
            every = np.arange(len(decision.choices), dtype=np.int32)
            found.append(Choice(decision.name, (column,), every[:, None]))
        elif decision.role == "kernel":
            governor, least = -1, 0
            if decision.needs is not None:
                governor, least = depths[decision.needs[0]], decision.needs[1]
                # depth is a prefix: the first candidate ends before the first that needs more
                ended = ends.setdefault(governor, [names[-1]])
                ended[least:] = [decision.group]
            names.append(decision.group)
            channels = space.column[f"{decision.group}.channels"]
            candidates = _operations(
                len(decision.choices), len(space.decisions[channels].choices), widths
            )
            if len(candidates) > 1:
                columns = (column, channels)
                found.append(Choice(decision.group, columns, candidates, governor, least))
    place = {c.name: p for p, c in enumerate(found) if c.name not in depths}
    return tuple(found), place, {depth: tuple(last) for depth, last in ends.items()}


def _operations(kernels: int, channels: int, widths: int | None) -> NDArray[np.int32]:
    """`(k, 2)`: every kernel with channel choices evenly spaced from the first to the last."""
    count = channels if widths is None else min(widths, channels)
    spaced = np.linspace(0, channels - 1, count).round().astype(np.int32)
    return np.array(list(product(range(kernels), spaced.tolist())), np.int32)
