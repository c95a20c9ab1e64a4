"""The methods of a comparison: each is given trials and a budget, and ends in one network.

Where stages follow one another, a stage before the last leaves room for what later ones save, in
the ratios of the paper's pipeline: 13.1 ms after ProxylessNAS, 9.8 after AMC, 8.4 after HAQ (Wang
et al., CVPR 2020, table 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import TrialState

from apq_optuna.baselines import AMCSampler, HAQSampler
from apq_optuna.baselines.ddpg import DDPGOptions
from apq_optuna.baselines.held import genotype_of
from apq_optuna.baselines.proxyless import ProxylessOptions, search_architecture
from apq_optuna.comparison.setting import Setting, Unquantized
from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import MobileFamily
from apq_optuna.predictor import transfer
from apq_optuna.sampler import APQSampler
from apq_optuna.sampler.history import History
from apq_optuna.search import budgeted_score, evolve
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet, train_supernet

AFTER_ARCHITECTURE, AFTER_PRUNING = 13.1 / 8.4, 9.8 / 8.4
"""Latency after a stage over that at the end."""

WIDE = 8
"""Bit-width before quantization is searched."""

LATENCY_WEIGHT = 0.02
"""Of ProxylessNAS's loss; at the paper's 0.1 it stays far below the target."""

PAIRS = 80
"""Most quantized pairs of the paper's search."""

FINALISTS = 4
"""Networks of the paper's evolution that are measured."""

UNIFORM = (8, 6, 4)


@dataclass(frozen=True)
class Found:
    """What a method ended with.

    Attributes:
        study: Whose most accurate trial within the budget it is.
        supernet: Of that study.
        seconds: Of everything that is done for this device and budget alone.
        shared: Of what is done once for all devices and budgets beside the supernet and its pairs,
            by name.
    """

    study: Study
    supernet: OnceForAllNet
    seconds: float
    shared: Mapping[str, float]


@dataclass(frozen=True)
class Method:
    """A method: what it is called in tables, and what does it."""

    title: str
    run: Callable[[Setting], Found]


def _spent(study: Study) -> float:
    """Seconds of a study's completed trials, and of what proposed them."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sum(t.duration.total_seconds() for t in trials if t.duration is not None)


def _found(s: Setting, *studies: Study, more: float = 0.0, **shared: float) -> Found:
    seconds = more + sum(_spent(study) for study in studies)
    return Found(studies[-1], s.supernet, seconds, shared)


def _options(trials: int, *, pruning: bool = False) -> DDPGOptions:
    original = DDPGOptions.amc() if pruning else DDPGOptions.haq()
    return original.for_trials(trials)


def _wide(space: SearchSpace, *, largest: bool) -> np.ndarray:
    """The largest or smallest network at 8 bits, or the widest there are."""
    widths = space.bits
    return space.extreme(largest=largest, bits=WIDE if WIDE in widths else widths[-1])


def _architecture(s: Setting, room: float) -> tuple[dict[str, Any], float]:
    """What ProxylessNAS finds for a target with room for later stages, and what that took."""
    space = s.supernet.space
    target = s.at_least(s.limit * room, _wide(space, largest=False))
    folder = s.folder / f"proxyless-{s.metric}-{target:.6g}-{s.seed}-{s.conditions}"

    def found() -> dict[str, Any]:
        subnet = search_architecture(
            s.supernet, s.data, s.costs, target, metric=s.metric, path=folder, seed=s.seed,
            device=s.device, options=ProxylessOptions(latency_weight=LATENCY_WEIGHT),
            bits=WIDE if WIDE in space.bits else space.bits[-1],
        )  # fmt: skip
        return space.to_params(genotype_of(space, subnet))

    return s.kept(folder.name, found)


def sequential(s: Setting) -> Found:
    """ProxylessNAS, then AMC, then HAQ."""
    space = s.supernet.space
    architecture, seconds = _architecture(s, AFTER_ARCHITECTURE)
    row = space.from_params(architecture)
    pruned_away = row.copy()
    for column, decision in enumerate(space.decisions):
        if decision.role == "channels":
            pruned_away[column] = 0
    room = s.at_least(s.limit * AFTER_PRUNING, space.canonical(pruned_away[None]))
    amc = AMCSampler(
        space, costs=s.costs, budgets={s.metric: room}, fixed=architecture, seed=s.seed,
        options=_options(s.trials, pruning=True),
    )  # fmt: skip
    pruning = s.run(f"sequential, AMC, {s.case}", amc, Unquantized(s), s.trials)
    pruned = pruning.best_trial.params
    haq = HAQSampler(
        space, costs=s.costs, budgets={s.metric: s.limit}, fixed=architecture | pruned,
        seed=s.seed, options=_options(s.trials),
    )  # fmt: skip
    study = s.run(f"sequential, HAQ, {s.case}", haq, s.objective(), s.trials)
    return _found(s, pruning, study, more=seconds)


def mobilenet(s: Setting) -> Found:
    """The MobileNetV2 shape, trained from scratch as long as the supernet, then HAQ.

    The largest of the shapes that meets the budget at its lowest widths with a tenth to spare.
    """
    plan = s.mobilenet_plan
    if plan is None:
        raise InfeasibleBudgetError("it is not known how long the supernet was trained")
    family = s.supernet.space.family
    assert isinstance(family, MobileFamily)
    spaces = [SearchSpace.from_family(shape) for shape in family.hand_made()]
    # their layers are among the supernet's, and so in the same table
    least = [
        min(_least_cost(space, s.costs, s.metric, bits) for bits in space.bits) for space in spaces
    ]
    size = next((k for k, cost in enumerate(least) if cost <= s.limit / 1.1), None)
    if size is None:
        raise InfeasibleBudgetError(f"its smallest shape takes {least[-1]:.4g} at its lowest bits")
    space = spaces[size]
    folder = s.folder / f"mobilenet-{size}-{s.conditions}"

    def trained() -> None:
        s.tell("MobileNetV2: training from scratch")
        alone = replace(plan, shares=(1.0, 0.0, 0.0, 0.0))
        net = OnceForAllNet(space)
        train_supernet(net, s.data, alone, folder, device=s.device, progress=True)

    _, seconds = s.kept(folder.name, trained)
    net = OnceForAllNet.load(folder, space=space)
    haq = HAQSampler(
        space, costs=s.costs, budgets={s.metric: s.limit}, seed=s.seed,
        options=_options(s.trials),
    )  # fmt: skip
    study = s.run(f"MobileNetV2, HAQ, {s.case}", haq, s.objective(net), s.trials)
    return Found(study, net, _spent(study), {f"MobileNetV2 ({size}) trained": seconds})


def _least_cost(space: SearchSpace, costs: CostTable, metric: str, bits: int) -> float:
    compiled = costs.compile(space)
    column = list(compiled.metric_names).index(metric)
    return float(compiled(space.extreme(largest=False, bits=bits))[0, column])


def _joint(s: Setting, name: str, limit: float, held: Mapping[str, Any], trials: int) -> Study:
    """APQ's sampler on everything but what is held."""
    sampler = APQSampler(
        s.supernet.space, costs=s.costs, source=s.pairs, budgets={s.metric: limit}, seed=s.seed
    )
    prescribed = [held] * trials if held else ()
    return s.run(name, sampler, s.objective(), trials, prescribed)


def joint(s: Setting) -> Found:
    """Architecture, pruning and quantization at once."""
    return _found(s, _joint(s, f"joint, {s.case}", s.limit, {}, s.trials))


def paper(s: Setting) -> Found:
    """The paper's search: a predictor transferred to random quantized pairs, then evolution."""
    space = s.supernet.space
    trials = min(s.trials, PAIRS + FINALISTS)
    count = max(trials - FINALISTS, 1)
    sampler = optuna.samplers.RandomSampler(seed=s.seed)
    compiled = s.costs.compile(space)
    rng = np.random.default_rng([s.seed, 0])
    rows = space.canonical(compiled.settle(space.sample(count, rng), rng))  # what the device runs
    drawn = [space.to_params(row) for row in rows]
    name = f"paper, pairs, seed {s.seed} [{s.conditions}]"
    random = s.run(name, sampler, s.objective(), count, drawn)
    snapshot = History(space, strict=True).read(random)
    fp32 = s.pairs.load()

    def finalists() -> list[dict[str, Any]]:
        predictor = transfer(
            s.pairs.fp32_predictor(space, fp32), space.features(snapshot.genotypes),
            snapshot.values[:, 0], replay=(s.pairs.features(space, fp32), fp32.accuracies),
            seed=s.seed,
        )  # fmt: skip
        score = budgeted_score(
            lambda rows: predictor.predict(space.features(rows))[0],
            lambda rows: s.price(rows)[:, None], np.array([s.limit]),
        )  # fmt: skip
        start = np.concatenate([snapshot.genotypes, *_smallest(space)])
        again = np.random.default_rng([s.seed, 1])
        result = evolve(
            space, score, rng=again, initial=start,
            constrain=lambda rows: compiled.settle(rows, again),
        )  # fmt: skip
        return [space.to_params(row) for row in result.genotypes[:FINALISTS]]

    chosen, seconds = s.kept(f"paper, evolution, {s.case}", finalists)
    study = s.run(f"paper, {s.case}", sampler, s.objective(), FINALISTS, chosen)
    return _found(s, study, more=seconds, **{"quantized pairs": _spent(random)})


def uniform(bits: int) -> Callable[[Setting], Found]:
    """The best architecture by the fp32 predictor that meets the budget at one bit-width."""

    def run(s: Setting) -> Found:
        space = s.supernet.space
        if bits not in space.bits:
            raise InfeasibleBudgetError(f"the space has no width of {bits} bits")
        columns = [c for c, d in enumerate(space.decisions) if d.quantization]
        width = [space.decisions[c].index_of(bits) for c in columns]

        def held(rows: np.ndarray) -> np.ndarray:
            rows = rows.copy()
            rows[:, columns] = width
            return rows

        cheapest = space.extreme(largest=False, bits=bits)
        if s.price(cheapest)[0] > s.limit:
            raise InfeasibleBudgetError(
                f"the cheapest network takes {s.price(cheapest)[0]:.4g} at {bits} bits"
            )

        def finalists() -> list[dict[str, Any]]:
            predictor = s.pairs.fp32_predictor(space, s.pairs.load())
            score = budgeted_score(
                lambda rows: predictor.predict(space.features(_floats(space, rows)))[0],
                lambda rows: s.price(rows)[:, None], np.array([s.limit]),
            )  # fmt: skip
            result = evolve(
                space, score, rng=np.random.default_rng(s.seed), initial=cheapest, constrain=held
            )
            return [space.to_params(row) for row in result.genotypes[:FINALISTS]]

        chosen, seconds = s.kept(f"uniform {bits}, {s.case}", finalists)
        sampler = optuna.samplers.RandomSampler(seed=s.seed)
        study = s.run(f"uniform {bits}, {s.case}", sampler, s.objective(), len(chosen), chosen)
        return _found(s, study, more=seconds)

    return run


def _floats(space: SearchSpace, rows: np.ndarray) -> np.ndarray:
    """The architectures of genotypes, bit-widths as fp32 pairs have them."""
    rows = rows.copy()
    rows[:, [c for c, d in enumerate(space.decisions) if d.quantization]] = 0
    return space.canonical(rows)


def _smallest(space: SearchSpace) -> list[np.ndarray]:
    """The smallest network at each bit-width; on some devices the lowest is not the cheapest."""
    return [space.extreme(largest=False, bits=bits) for bits in space.bits]


def _of_roles(space: SearchSpace, parameters: Mapping[str, Any], *roles: str) -> dict[str, Any]:
    return {
        decision.name: parameters[decision.name]
        for decision in space.decisions
        if decision.role in roles and decision.name in parameters
    }


def coupled(first: tuple[str, ...], second: tuple[str, ...]) -> Callable[[Setting], Found]:
    """Two searches one after the other, each joint in its own roles.

    Args:
        first: Roles searched first, with channels at their most and bits at 8 until their turn.
        second: Roles searched then, all else as found.
    """

    def run(s: Setting) -> Found:
        space = s.supernet.space
        start = space.to_params(_wide(space, largest=True)[0])
        every = {d.name: d.choices[-1] for d in space.decisions if d.role == "channels"}
        wide = WIDE if WIDE in space.bits else space.bits[-1]
        every |= {d.name: wide for d in space.decisions if d.quantization}
        held = _of_roles(space, start | every, *second)
        lowest = np.concatenate(_smallest(space))
        for column, decision in enumerate(space.decisions):
            if decision.name in held:
                lowest[:, column] = decision.index_of(held[decision.name])
        room = AFTER_PRUNING if "bits" in second else AFTER_ARCHITECTURE / AFTER_PRUNING
        limit = s.at_least(s.limit * room, space.canonical(lowest))
        name = " + ".join(first)
        half = s.trials // 2
        before = _joint(s, f"{name} first, {s.case}", limit, held, half)
        found = s.with_limit(limit).best(before).params
        rest = _of_roles(space, found, *first)
        study = _joint(s, f"{name} done, {s.case}", s.limit, rest, s.trials - half)
        return _found(s, before, study)

    return run


def architecture_apart(s: Setting) -> Found:
    """ProxylessNAS, then pruning and quantization jointly."""
    space = s.supernet.space
    architecture, seconds = _architecture(s, AFTER_ARCHITECTURE)
    held = _of_roles(space, architecture, "depth", "kernel")
    study = _joint(s, f"after ProxylessNAS, {s.case}", s.limit, held, s.trials)
    return _found(s, study, more=seconds)


METHODS: dict[str, Method] = {
    "sequential": Method("ProxylessNAS, AMC, HAQ", sequential),
    "mobilenet": Method("MobileNetV2 from scratch, HAQ", mobilenet),
    "joint": Method("joint (APQSampler)", joint),
    "paper": Method("joint (the paper's search)", paper),
    **{f"uniform{b}": Method(f"uniform {b} bits", uniform(b)) for b in UNIFORM},
    "architecture+pruning": Method(
        "architecture + pruning, then bits", coupled(("depth", "kernel", "channels"), ("bits",))
    ),
    "architecture+bits": Method(
        "architecture + bits, then pruning", coupled(("depth", "kernel", "bits"), ("channels",))
    ),
    "pruning+bits": Method("ProxylessNAS, then pruning + bits", architecture_apart),
}
