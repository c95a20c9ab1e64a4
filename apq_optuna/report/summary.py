"""A study's completed trials as arrays, oriented and ready to draw or print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._optuna import confirmed_values, exported_values, study_attribute, trials_of
from apq_optuna._text import aligned
from apq_optuna.errors import SpaceError, StudyMismatchError
from apq_optuna.networks import Genotypes
from apq_optuna.search import hypervolume, nondominated
from apq_optuna.space import SearchSpace


@dataclass(frozen=True)
class StudySummary:
    """Completed trials of a study.

    Attributes:
        metric_names: Names of the M objectives.
        numbers: Trial numbers, `(n,)`.
        values: As stored, `(n, M)`.
        signs: `(M,)`: 1 for minimised objectives, -1 for maximised ones.
        predicted: Mean and spread predicted before each trial, `(n, 2)`; NaN where none was.
        front: Indices of the Pareto front, best first objective first.
        trials: The trials themselves.
        states: Number of trials by state name.
        space: The joint space of its networks; None where the study does not say.
        confirmed: Accuracies of trials that were measured again, by trial number; the trial's own
            is not among them.
        exported: What the exported files of trials took, by trial number.
    """

    metric_names: list[str]
    numbers: NDArray[np.int64]
    values: NDArray[np.float64]
    signs: NDArray[np.float64]
    predicted: NDArray[np.float64]
    front: NDArray[np.intp]
    trials: list[FrozenTrial]
    states: dict[str, int]
    space: SearchSpace | None = None
    confirmed: Mapping[int, Sequence[float]] = field(default_factory=dict)
    exported: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def measured(self, index: int) -> float | None:
        """Latency of a trial's network where it was run for real, ms: of its exported file, else
        of the trial itself."""
        if (found := self.exported.get(int(self.numbers[index]))) is not None:
            return float(found["latency_ms"])
        value = self.trials[index].user_attrs.get("measured_latency_ms")
        return None if value is None else float(value)

    def _measured_text(self, index: int) -> str | None:
        """What `measured` says, with the processor where others' are in the table, too."""
        value = self.measured(index)
        if value is None:
            return None
        places = {str(found["processor"]) for found in self.exported.values()}
        own = self.exported.get(int(self.numbers[index]))
        if len(places) < 2 or own is None:
            return f"{value:.4f}"
        return f"{value:.4f}@{str(own['processor']).replace(' ', '-')}"

    def again(self, index: int) -> tuple[float, float, int] | None:
        """Mean, deviation (NaN of one) and number of a trial's further measurements, if any."""
        values = self.confirmed.get(int(self.numbers[index]))
        if not values:
            return None
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return float(np.mean(values)), spread, len(values)

    @cached_property
    def _rows(self) -> list[Genotypes | None]:
        """The network of every trial."""
        found: list[Genotypes | None] = []
        for trial in self.trials:
            row = None
            if self.space is not None and self.space.family is not None:
                with suppress(SpaceError):
                    row = self.space.from_params(trial.params)
            found.append(row)
        return found

    @cached_property
    def _bits(self) -> NDArray[np.float64]:
        bits = np.full(len(self.trials), np.nan)
        there = [i for i, row in enumerate(self._rows) if row is not None]
        if self.space is not None and there:
            rows = [row for row in self._rows if row is not None]
            bits[there] = self.space.mean_bits(np.stack(rows))
        return bits

    def genotype(self, index: int) -> Genotypes | None:
        """The network of a trial, `(D,)`; None where it has none of the space."""
        return self._rows[index]

    def mean_bits(self, index: int) -> float:
        """Mean of the bit-widths of a trial's network; NaN where it has none."""
        return float(self._bits[index])

    def oriented(self) -> NDArray[np.float64]:
        """Values with every objective to be minimised, `(n, M)`."""
        return self.values * self.signs

    def reference(self) -> NDArray[np.float64]:
        """A point just beyond the worst value of every objective, oriented, `(M,)`."""
        points = self.oriented()
        if not len(points):
            return np.zeros(len(self.signs))
        worst = points.max(axis=0)
        return np.asarray(worst + 0.01 * np.maximum(np.abs(worst), 1e-9))

    def hypervolume(self, reference: NDArray[np.float64] | None = None) -> float:
        """Hypervolume of the front; by default from `reference()`."""
        return hypervolume(self.oriented(), self.reference() if reference is None else reference)

    def describe(self, index: int) -> str:
        """One trial in a few lines of HTML."""
        lines = [f"trial {self.numbers[index]}"]
        lines += [
            f"{name}: {value:.4g}"
            for name, value in zip(self.metric_names, self.values[index], strict=True)
        ]
        attributes = self.trials[index].user_attrs
        if "fp32_accuracy" in attributes:
            lines.append(f"fp32 accuracy: {attributes['fp32_accuracy']:.4g}")
        if (again := self.again(index)) is not None:
            lines.append(f"{again[2]} further seeds: {again[0]:.4g} +- {again[1]:.2g}")
        elif "accuracy_std" in attributes:
            lines.append(f"deviation over seeds: {attributes['accuracy_std']:.2g}")
        if (latency := self.measured(index)) is not None:
            found = self.exported.get(int(self.numbers[index]), {})
            where = f" on {found['processor']}" if found else ""
            lines.append(f"measured: {latency:.4g} ms{where}")
        if "macs" in attributes:
            lines.append(f"{attributes['macs'] / 1e6:.2f} MMACs")
        if np.isfinite(bits := self.mean_bits(index)):
            lines.append(f"mean bits: {bits:.2f}")
        return "<br>".join(lines)

    def table(self) -> str:
        """The front as aligned text, one line a trial."""
        measured = {int(i): self._measured_text(int(i)) for i in self.front}
        some = any(value is not None for value in measured.values())
        header = ["trial", *self.metric_names, *["measured"] * some, "fp32", "MMACs"]
        header.append("mean bits")
        header[2:2] = ["again", "+-"] if self.confirmed else []
        rows = [header]
        for i in self.front:
            again = self.again(int(i)) if self.confirmed else None
            more = ["-", "-"] if again is None else [f"{again[0]:.4f}", f"{again[1]:.4f}"]
            trial = self.trials[i]
            bits = self.mean_bits(int(i))
            fp32, macs = trial.user_attrs.get("fp32_accuracy"), trial.user_attrs.get("macs")
            rows.append(
                [
                    str(self.numbers[i]),
                    f"{self.values[i][0]:.4f}",
                    *(more if self.confirmed else ()),
                    *(f"{value:.4f}" for value in self.values[i][1:]),
                    *([measured[int(i)] or "-"] if some else ()),
                    "" if fp32 is None else f"{fp32:.4f}",
                    "" if macs is None else f"{macs / 1e6:.2f}",
                    f"{bits:.2f}" if np.isfinite(bits) else "",
                ]
            )
        return aligned(rows)


def stored_space(study: Study) -> SearchSpace | None:
    """The joint space that a study keeps; None where it keeps none."""
    description = study_attribute(study, "space")
    return SearchSpace.from_dict(description) if description else None


def summarise(study: Study, space: SearchSpace | None = None) -> StudySummary:
    """Reads a study.

    Args:
        study: The study.
        space: The joint space of its networks; by default the one it keeps, or its sampler's.

    Raises:
        StudyMismatchError: Never for an empty study; only if values and directions disagree.
    """
    everything = trials_of(study)
    states: dict[str, int] = {}
    for trial in everything:
        states[trial.state.name] = states.get(trial.state.name, 0) + 1
    m = len(study.directions)
    trials = [
        trial
        for trial in everything
        if trial.state == TrialState.COMPLETE and np.isfinite(trial.values).all()
    ]
    if any(len(trial.values) != m for trial in trials):
        raise StudyMismatchError(
            "the study's trials have another number of values than directions"
        )
    values = np.array([trial.values for trial in trials], float).reshape(len(trials), m)
    signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
    predicted = np.array(
        [
            (t.user_attrs.get("predicted_mean", np.nan), t.user_attrs.get("predicted_std", np.nan))
            for t in trials
        ],
        float,
    ).reshape(len(trials), 2)
    front = np.flatnonzero(nondominated(values * signs)) if len(trials) else np.zeros(0, np.intp)
    front = front[np.argsort((values * signs)[front, 0], kind="stable")]
    names = study.metric_names or (
        ["accuracy"] if m == 1 else ["accuracy", *(f"objective {i}" for i in range(1, m))]
    )
    return StudySummary(
        list(names), np.array([t.number for t in trials], np.int64), values, signs, predicted,
        front, trials, states,
        space or stored_space(study) or getattr(study.sampler, "space", None),
        confirmed_values(study) if trials else {}, exported_values(study) if trials else {},
    )  # fmt: skip
