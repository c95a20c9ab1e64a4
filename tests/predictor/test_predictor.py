"""The predictor: its transfer equals what it came from, and it sees bit-widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apq_optuna.errors import CheckpointError, InvalidArgumentError
from apq_optuna.predictor import (
    AccuracyPredictor,
    evaluate,
    kendall_tau,
    pairwise_accuracy,
    transfer,
    transferred,
)
from apq_optuna.space import SearchSpace

SPACE = SearchSpace.preset("digits")
A = SPACE.architecture_features


def problem(n: int, seed: int, *, quantized: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features and a made-up accuracy, additive in the architecture and in the bits."""
    weight = np.random.default_rng(0).normal(0, 0.02, SPACE.num_features).astype(np.float32)
    features = SPACE.features(SPACE.sample(n, np.random.default_rng(seed)))
    if not quantized:
        features[:, A:] = 0
    return features, (0.8 + features @ weight).astype(float)


@pytest.fixture(scope="module")
def fp32() -> AccuracyPredictor:
    predictor = AccuracyPredictor(SPACE.num_features, A, members=3, hidden=64)
    return predictor.fit(*problem(300, 1, quantized=False), epochs=40)


def test_an_untrained_predictor_predicts_the_mean() -> None:
    features, accuracy = problem(50, 1, quantized=False)
    predictor = AccuracyPredictor(SPACE.num_features, A, hidden=400).fit(
        features, accuracy, epochs=1, learning_rate=1e-12
    )
    mean = predictor.predict(features)[0]
    assert abs(mean.mean() - accuracy.mean()) < 0.3 * accuracy.std()
    assert mean.std() < 0.5 * accuracy.std()


def test_it_learns_fp32_pairs(fp32: AccuracyPredictor) -> None:
    features, accuracy = problem(200, 2, quantized=False)
    metrics = evaluate(accuracy, *fp32.predict(features))
    assert metrics.pairwise_accuracy > 0.85
    assert metrics.rmse < 0.5 * accuracy.std()
    assert 0.7 < metrics.coverage <= 1.0


def test_transfer_before_any_quantized_pair_is_the_fp32_predictor(fp32: AccuracyPredictor) -> None:
    rows = SPACE.sample(100, np.random.default_rng(5))
    features = SPACE.features(rows)
    without_bits = features.copy()
    without_bits[:, A:] = 0
    empty = (np.zeros((0, SPACE.num_features), np.float32), np.zeros(0))
    moved = transfer(fp32, *empty)
    np.testing.assert_array_equal(moved.predict(features)[0], moved.predict(without_bits)[0])
    np.testing.assert_allclose(
        moved.predict(features)[0], fp32.predict(without_bits)[0], rtol=0, atol=1e-12
    )
    assert (moved.predict(features)[1] >= 0.05).all()  # what bits cost is not known yet


def test_changing_only_bits_changes_the_prediction(fp32: AccuracyPredictor) -> None:
    """The released APQ code encodes every policy as 8-bit, so its search cannot see bits."""
    predictor = transfer(fp32, *problem(40, 3, quantized=True), steps=60)
    row = SPACE.sample(1, np.random.default_rng(7))
    bits = [c for c, d in enumerate(SPACE.decisions) if d.quantization and SPACE.active(row)[0, c]]
    before = predictor.predict(SPACE.features(row))[0][0]
    for column in bits:
        changed = row.copy()
        changed[0, column] = (changed[0, column] + 1) % SPACE.sizes[column]
        assert predictor.predict(SPACE.features(changed))[0][0] != before


def test_transfer_beats_starting_from_nothing(fp32: AccuracyPredictor) -> None:
    train, held = problem(20, 3, quantized=True), problem(300, 4, quantized=True)
    replay = problem(300, 1, quantized=False)
    moved = transfer(fp32, *train, replay=replay)
    scratch = AccuracyPredictor(SPACE.num_features, A, members=3, hidden=64).fit(
        *train, epochs=200
    )
    first, second = (pairwise_accuracy(held[1], p.predict(held[0])[0]) for p in (moved, scratch))
    assert first > second


def test_transfer_leaves_the_original_alone(fp32: AccuracyPredictor) -> None:
    before = fp32.to_bytes()
    transferred(fp32)
    transfer(fp32, *problem(10, 3, quantized=True), steps=5)
    assert fp32.to_bytes() == before


def test_replay_keeps_what_was_learned(fp32: AccuracyPredictor) -> None:
    old = problem(300, 1, quantized=False)
    new = problem(12, 3, quantized=True)
    errors = []
    for replay in (None, old):
        predictor = transfer(fp32, *new, replay=replay, steps=300)
        errors.append(np.abs(predictor.predict(old[0])[0] - old[1]).mean())
    assert errors[1] < errors[0]


def test_spread_stays_honest_while_rows_come_one_by_one() -> None:
    from apq_optuna.sampler.surrogate import Surrogate

    rng = np.random.default_rng(0)
    rows = SPACE.sample(160, rng)
    features = SPACE.features(rows)
    weight = np.random.default_rng(1).normal(0, 0.02, SPACE.num_features)
    accuracy = 0.8 + features @ weight + rng.normal(0, 0.03, 160)
    surrogate = Surrogate(SPACE)
    for n in range(60, 77):
        model = surrogate.refresh(rows[:n], accuracy[:n])
    mean, std = model.predict(rows[80:])
    std = np.hypot(std, model.alone.gp.noise**0.5 * model.alone.gp.unit)
    assert 0.8 < evaluate(accuracy[80:], mean, std).coverage <= 1.0


def test_a_row_is_always_in_the_same_bags() -> None:
    import torch

    features, _ = problem(200, 1, quantized=True)
    predictor = AccuracyPredictor(SPACE.num_features, A)
    whole = predictor._bags(torch.from_numpy(features))
    part = predictor._bags(torch.from_numpy(features[50:90]))
    assert torch.equal(whole[:, 50:90], part)
    assert whole.mean().item() == pytest.approx(0.8, abs=0.05)


def test_gathering_scores_like_multiplying(fp32: AccuracyPredictor) -> None:
    predictor = transfer(fp32, *problem(10, 3, quantized=True), steps=5)
    rows = SPACE.sample(50, np.random.default_rng(0))
    np.testing.assert_allclose(
        predictor.scorer(SPACE)(rows), predictor.predict(SPACE.features(rows))[0], rtol=1e-5
    )


def test_changing_the_unit_changes_no_prediction(fp32: AccuracyPredictor) -> None:
    features, _ = problem(20, 9, quantized=False)
    predictor = fp32.copy()
    predictor._rescale(predictor.unit * 7)
    for before, after in zip(fp32.predict(features), predictor.predict(features), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4)


def test_files_round_trip_and_bad_ones_are_refused(
    fp32: AccuracyPredictor, tmp_path: Path
) -> None:
    features, _ = problem(10, 2, quantized=True)
    path = fp32.save(tmp_path / "predictor.safetensors")
    for again in (AccuracyPredictor.load(path), AccuracyPredictor.from_bytes(fp32.to_bytes())):
        np.testing.assert_array_equal(again.predict(features), fp32.predict(features))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        AccuracyPredictor.load(path)
    with pytest.raises(CheckpointError, match="not an accuracy predictor"):
        AccuracyPredictor.from_bytes(b"nonsense")


def test_bad_rows_are_named(fp32: AccuracyPredictor) -> None:
    features, accuracy = problem(10, 2, quantized=True)
    with pytest.raises(InvalidArgumentError, match=r"expected \(n, 142\)"):
        fp32.predict(features[:, :-1])
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        fp32.copy().update(features, np.full_like(accuracy, np.nan))


def test_metrics_are_their_definitions() -> None:
    truth = np.array([1.0, 2.0, 3.0, 3.0])
    assert pairwise_accuracy(truth, truth) == 1.0
    assert pairwise_accuracy(truth, -truth) == 0.0
    assert pairwise_accuracy(truth, np.zeros(4)) == 0.5
    assert kendall_tau(truth, np.array([1.0, 3.0, 2.0, 2.0])) == pytest.approx(1 / 5)
    metrics = evaluate(truth, truth + 1, np.ones(4))
    assert (metrics.rmse, metrics.coverage, metrics.rows) == (1.0, 1.0, 4)
