"""Which of the paper's claims hold, told from records."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import metrics
from experiments.views.metrics import diverged
from experiments.views.view import Finds, Found

ACCURACY_LOST = 0.01  # at most, where a claim holds

RULE_OF_JUDGEMENT = (
    "A row holds for a rule if every seed reaches its baseline's best train loss, on average sooner than the "
    "baseline first does, and mean final accuracy is at most one point lower. Sooner is counted in epochs, each "
    "longer by the run's own share of time spent on predictions, so that a machine whose speed drifts does not decide. "
    "*Holds*: in all rows. *Holds only at low learning rates*: of rows that differ in their learning rate, in all up to "
    "some rate and in none above it, for every batch size. Otherwise the rows are counted; *does not hold*: in none."
)


class Judged(NamedTuple):
    """A row under a rule, means over seeds.

    Attributes:
      holds: as `RULE_OF_JUDGEMENT` says.
      saved: of the time to the baseline's best train loss; minus infinity if a seed never gets there.
      gain: of final accuracy.
    """

    holds: bool
    saved: float
    gain: float


def _pairs(runs: Sequence[Run], rule: str) -> list[tuple[Run, Run]]:
    """Each run under a rule, and its baseline."""
    baselines = {run.seed: run for run in runs if run.rule == BASELINE}
    return [(run, baselines[run.seed]) for run in runs if run.rule == rule and run.seed in baselines]


def judge(runs: Sequence[Run], rule: str) -> Judged | None:
    """A row under a rule; None if the rule or its baselines are not there."""
    pairs = _pairs(runs, rule)
    if not pairs:
        return None
    saved = 1 - float(np.mean([metrics.time_ratio(*pair, "train_loss") for pair in pairs]))
    gain, _ = metrics.accuracy_difference(pairs)
    return Judged(saved > 0 and gain >= -ACCURACY_LOST - 1e-9, saved, gain)  # accuracies are rounded


def verdicts(finds: Finds) -> list[str]:
    """For each rule, in how much of the table the claim of saved time holds, and the figures."""
    said = []
    for rule in dict.fromkeys(rule for found in finds.values() for rule in found.rules if rule != BASELINE):
        judged = {label: judge(found.runs, rule) for label, found in finds.items()}
        known = {label: j for label, j in judged.items() if j is not None}
        if known:
            held = {label: j.holds for label, j in known.items()}
            verdict = _verdict(held, {label: finds[label] for label in known})
            said.append(f"{rule}: {verdict}; {_figures(list(known.values()))}")
    return said


def _figures(judged: Sequence[Judged]) -> str:
    saved = [100 * j.saved for j in judged if math.isfinite(j.saved)]
    missed, every = len(judged) - len(saved), len(judged)
    gains = _range([100 * j.gain for j in judged], "+.1f", " points")
    parts = [f"time saved {_range(saved, '.0f', '%')}"] if saved else []
    if missed:
        parts.append("a seed never gets there" + f" in {missed} of {every} rows" * (every > 1))
    return "; ".join([*parts, f"accuracy {gains}"])


def _range(values: Sequence[float], form: str, unit: str) -> str:
    digits = int(form[-2])
    # No minus before a zero.
    low, middle, high = (format(round(f(values), digits) + 0.0, form) for f in (np.min, np.median, np.max))
    return f"{middle}{unit}" if len(values) == 1 else f"{low} to {high}{unit}, median {middle}"


def _verdict(held: Mapping[str, bool], finds: Finds) -> str:
    count, every = sum(held.values()), len(held)
    if count == every:
        return "holds" if every == 1 else f"holds (all {every} rows)"
    if count == 0:
        return "does not hold" if every == 1 else f"does not hold (none of {every} rows)"
    by_batch: dict[tuple[str, int], list[tuple[float, bool]]] = {}
    for label, found in finds.items():
        fields = found.runs[0].fields
        group = (fields["optimizer"], fields["batch_size"])
        by_batch.setdefault(group, []).append((fields["learning_rate"], held[label]))
    groups = [[h for _, h in sorted(group)] for group in by_batch.values()]
    swept = all(len(group) > 1 for group in groups)
    # Falling from True to False once, and never back.
    if swept and all(group == sorted(group, reverse=True) for group in groups):
        return f"holds only at low learning rates ({count} of {every} rows)"
    return f"holds in {count} of {every} rows"


SUMMARY_HEADER = (
    "rule",
    "rows that hold",
    "runs that reach their baseline's best train loss",
    "time saved, median run",
    "final accuracy in points, median row",
    "runs that diverged",
)


def summary(rows: Sequence[Found], rule: str) -> list[str]:
    """A rule over all rows, as `SUMMARY_HEADER` says; a run that never gets there saves less than any other."""
    judged = [j for found in rows if (j := judge(found.runs, rule))]
    saved = [1 - metrics.time_ratio(*p, "train_loss") for found in rows for p in _pairs(found.runs, rule)]
    failed = sum(failures(found, rule)[0] for found in rows)
    median = float(np.quantile(saved, 0.5, method="lower"))
    return [
        f"`{rule}`",
        f"{sum(j.holds for j in judged)} of {len(judged)}",
        f"{sum(map(math.isfinite, saved))} of {len(saved)}",
        f"{100 * median:.0f}%" if math.isfinite(median) else "-",
        f"{round(100 * float(np.median([j.gain for j in judged])), 1) + 0.0:+.1f}",  # no minus before a zero
        f"{failed}",
    ]


def final(found: Found, rule: str, field: str = "train_loss") -> float:
    return float(np.mean([run.epochs[-1][field] for run in found.of(rule)]))


def failures(found: Found, rule: str) -> tuple[int, int]:
    """How many runs of an arm diverged, and how many there are."""
    failed = [diverged(*pair) for pair in _pairs(found.runs, rule)]
    return sum(failed), len(failed)
