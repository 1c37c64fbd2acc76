"""What a run gained over its baseline, on constructed runs whose gain is known."""

import math

import numpy as np
import pytest
import scipy.stats

from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import metrics

LENGTHS = {0.6: 24, 0.75: 30, 1.0: 40, 1.33: 53, 2.0: 80}


def run_of(loss, epochs=40, seed=0, rule="x", seconds=1.0, pdt=0.0, accuracy=0.5, **others) -> Run:
    """A run whose every epoch is alike."""
    epoch = {
        "train_loss": loss,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "train_seconds": seconds,
        "pdt_seconds": pdt,
        **others,
    }
    fields = {"rule": rule, "seed": seed, "epochs": epochs}
    return Run(fields, [{"epoch": i + 1, **epoch} for i in range(epochs)])


def power_law(power=0.7, scale=3.0, seeds=(0, 1, 2), **others):
    """Baselines whose final loss falls with a power of the length; each seed with its own scale."""
    return {
        share: [run_of((scale + s) * n**-power, n, s, BASELINE, **others) for s in seeds]
        for share, n in LENGTHS.items()
    }


def arm(ratios, power=0.7, scale=3.0, **others):
    """An arm that ends like baselines of so many times its own schedule, by seed."""
    return [run_of((scale + s) * (r * 40) ** -power, seed=s, **others) for s, r in enumerate(ratios)]


def test_a_power_law_gives_the_ratio_back_exactly_and_seeds_are_paired():
    for ratio in (0.5, 0.7, 0.9, 1.0, 1.25, 1.8, 2.9):  # 0.5 and 2.9 are extrapolated
        found = metrics.effective_schedule(arm([ratio] * 3), power_law())
        assert found.value == pytest.approx(ratio)
        assert (found.low, found.high) == (pytest.approx(ratio), pytest.approx(ratio))
        assert found.bound == 0


def test_over_seeds_it_is_the_geometric_mean_with_students_interval_of_the_logs():
    ratios = [1.1, 1.3, 1.6]
    found = metrics.effective_schedule(arm(ratios), power_law())
    logs = np.log(ratios)
    low, high = scipy.stats.t.interval(0.95, 2, loc=logs.mean(), scale=scipy.stats.sem(logs))
    assert found.value == pytest.approx(scipy.stats.gmean(ratios))
    assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    alone = metrics.effective_schedule(arm(ratios)[:1], power_law())
    assert (alone.value, alone.low, alone.high) == (pytest.approx(1.1), 0, math.inf)


def test_beyond_one_step_is_a_bound():
    baselines = power_law()
    step, first = 80 / 53, 30 / 24
    for ratio, ends, bound in ((9.0, 2 * step, 1), (0.2, 0.6 / first, -1)):
        found = metrics.effective_schedule(arm([ratio] * 3), baselines)
        assert (found.value, found.bound) == (pytest.approx(ends), bound)
        anyway = metrics.effective_schedule(arm([ratio] * 3), baselines, beyond=math.inf)
        assert (anyway.value, anyway.bound) == (pytest.approx(ratio), 0)
    # One seed beyond is enough; a diverged run counts as the shortest schedule.
    assert metrics.effective_schedule(arm([1.1, 1.2, 9.0]), baselines).bound == 1
    lost = metrics.effective_schedule([run_of(math.nan), run_of(math.inf, seed=1)], baselines)
    assert (lost.value, lost.bound) == (pytest.approx(0.6 / first), -1)
    assert metrics.effective_schedule([run_of(0.0)], baselines).bound == 1


def test_a_longer_schedule_that_ends_higher_counts_like_the_best_shorter_one():
    lengths = [24, 30, 40, 53, 80]
    rising = [4.0, 3.0, 2.0, 2.5, 1.0]
    assert metrics.equal_length(2.0, lengths, rising) == (40, 0)
    # Between 53, now at 2.0, and 80.
    assert metrics.equal_length(math.sqrt(2), lengths, rising) == (pytest.approx(math.sqrt(53 * 80)), 0)
    # Nothing is extrapolated where the last step does not fall.
    assert metrics.equal_length(0.5, lengths, [4.0, 3.0, 2.0, 1.0, 1.5]) == (80, 1)
    assert metrics.equal_length(5.0, lengths, [4.0, 4.5, 2.0, 1.0, 0.5]) == (24, -1)
    # A length whose run broke is left out.
    assert metrics.equal_length(2.0, lengths, [4.0, 3.0, 2.0, math.nan, 1.0]) == (40, 0)
    assert metrics.equal_length(2.0, [40], [2.0]) is None


def test_the_baseline_itself_is_one():
    baselines = power_law()
    assert metrics.effective_schedule(baselines[1.0], baselines) == (1, 1, 1, 0)


def test_per_second_takes_the_arms_overhead():
    # 0.6 s of steps and 0.15 s at the ends: a quarter more, whatever the baseline's seconds were.
    baselines = power_law(seconds=0.5)
    runs = arm([1.2] * 3, seconds=0.6, pdt=0.15)
    found = metrics.effective_schedule(runs, baselines, per_second=True)
    assert found.value == pytest.approx(1.2 / 1.25)
    assert metrics.effective_schedule(runs, baselines).value == pytest.approx(1.2)


def test_validation_is_told_only_where_the_baseline_still_falls_at_twice_the_schedule():
    falling = power_law()
    assert metrics.still_falls(falling)
    assert metrics.effective_schedule(arm([1.2] * 3), falling, "validation_loss").value == pytest.approx(1.2)
    overfitting = power_law(power=-0.1)
    assert not metrics.still_falls(overfitting)
    without = {share: runs for share, runs in falling.items() if share < 2}
    for baselines in (overfitting, without):
        found = metrics.effective_schedule(arm([1.2] * 3), baselines, "validation_loss")
        assert math.isnan(found.value)


def test_another_field_and_runs_without_a_baseline():
    baselines = power_law(probe_loss=1.0)
    runs = arm([1.5] * 3)
    for of in baselines.values():
        for run in of:
            run.epochs[-1]["probe_loss"] = run.fields["epochs"] ** -0.5
    for run in runs:
        run.epochs[-1]["probe_loss"] = (2 * 40) ** -0.5
    found = metrics.effective_schedule([*runs, run_of(1.0, seed=9)], baselines, "probe_loss")
    assert found.value == pytest.approx(2)
    assert math.isnan(metrics.effective_schedule([run_of(1.0, seed=9)], baselines).value)
    assert math.isnan(metrics.effective_schedule(runs, {1.0: baselines[1.0]}).value)


def test_paired_interval_is_students():
    values = [0.1, 0.3, -0.2, 0.4, 0.2]
    mean, half = metrics.paired_interval(values)
    low, high = scipy.stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert metrics.paired_interval([0.5]) == (0.5, math.inf)


def test_accuracies_are_paired_by_seed():
    runs = [run_of(1.0, 1, seed, accuracy=a) for seed, a in ((1, 0.7), (0, 0.6), (5, 0.1))]
    baselines = [run_of(1.0, 1, seed, accuracy=a) for seed, a in ((0, 0.5), (1, 0.4))]
    difference, half = metrics.accuracy_difference(metrics.paired(runs, baselines))
    assert difference == pytest.approx(0.2)
    assert half == pytest.approx(scipy.stats.t.ppf(0.975, 1) * 0.1)


def test_divergence_is_a_loss_of_more_than_twice_the_baselines():
    baseline = run_of(1.0)
    for loss, expected in ((2.0, False), (2.01, True), (math.nan, True), (math.inf, True)):
        assert metrics.diverged(run_of(loss), baseline) == expected
