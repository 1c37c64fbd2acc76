"""What README.md and docs/ state of `experiments/results`: each figure by its name, as it stands in the text.

A view over records, nothing trains. `docs/figures.py` writes the figures into
the pages.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.paper import claims
from experiments.paper import setups as paper_setups
from experiments.paper.views import VIEWS
from experiments.training import records
from experiments.training.arms import BASELINE
from experiments.tuned import setups
from experiments.tuned.tables import (
    SUMMARY_HEADER,
    Score,
    Scores,
    brief,
    interval,
    number,
    points,
    summary_rows,
)
from experiments.tuned.views import scores
from experiments.views import metrics, page
from experiments.views.report import markdown
from experiments.views.view import Asked, find
from pdt_optax import inspect

RESULTS = Path(__file__).parents[1] / "results"

Figures = dict[str, str]


def figures(folder: Path = RESULTS) -> Figures:
    """All figures of a folder of results."""
    return {
        **_default(scores("tuned", folder)),
        **_final(scores("tuned", folder)),
        **_ablation(scores("ablation", folder)),
        **_around(scores("around", folder)),
        **_screen(scores("screen", folder)),
        **_jumps(scores("jumps", folder)),
        **_guard(scores("guard", folder)),
        **_statistics(scores("statistics", folder)),
        **_inspect(),
        **_paper(folder),
        **_paper_size(folder / "h100"),
    }


def listed(values: Sequence[str]) -> str:
    """As a sentence lists them."""
    return f"{', '.join(values[:-1])} and {values[-1]}"


def _of(scores: Scores, arm: str) -> dict[str, Score]:
    return {pair: scored[arm] for pair, scored in scores.items() if arm in scored}


def _range(shares: Sequence[float]) -> str:
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f}%"


def _default(scores: Scores) -> Figures:
    """The default against the others at tuned rates, by the effective schedule."""
    found = {arm: _of(scores, arm) for arm in ("recommended", "drift", "released")}

    def values(arm: str) -> list[float]:
        return [score.effective.value for score in found[arm].values()]

    def mean(arm: str) -> str:
        return f"{statistics.geometric_mean(values(arm)):.2f}"

    arm = found["recommended"]
    gains = [score.gain for score in arm.values()]
    probe = [score.effective_probe.value for score in arm.values()]
    diverged, runs = sum(s.diverged for s in arm.values()), sum(s.seeds for s in arm.values())
    head = (
        "pair",
        "effective schedule",
        "at evaluated weights",
        "at validation loss",
        "difference in points",
    )
    rows = [
        (
            f"`{pair}`",
            *(interval(x) for x in (score.effective, score.effective_probe, score.effective_validation)),
            points(score.gain, score.gain_interval),
        )
        for pair, score in arm.items()
    ]
    return {
        "tuned.summary": brief(scores, setups.README_ARMS),
        "tuned.readme": _readme(scores),
        "tuned.pairs": markdown([head, *rows]),
        "tuned.path": _path(arm),
        "tuned.geomean": mean("recommended"),
        "tuned.geomean-evaluated": f"{statistics.geometric_mean(probe):.2f}",
        "tuned.median-evaluated": f"{statistics.median(probe):.2f}",
        "tuned.worst-evaluated": f"{min(probe):.2f}",
        "tuned.median": f"{statistics.median(values('recommended')):.2f}",
        "tuned.worst": f"{min(values('recommended')):.2f}",
        "tuned.diverged": f"Of {runs} runs {diverged or 'none'} diverged.",
        "tuned.drift-geomean": mean("drift"),
        "tuned.drift-worst": f"{min(values('drift')):.2f}",
        "tuned.released-geomean": mean("released"),
        "tuned.released-worst": f"{min(values('released')):.2f}",
        "tuned.points": f"{points(min(gains))} to {points(max(gains))}",
    }


def _path(default: dict[str, Score]) -> str:
    """How much of the mean motion the optimizer goes on doing while the default delivers it, least first."""
    head = ("pair", "persistence", "gain of the mean", "effective schedule")
    rows = [
        (f"`{pair}`", f"{s.persistence:.2f}", f"{s.pull:.2f}", interval(s.effective))
        for pair, s in sorted(default.items(), key=lambda item: item[1].persistence)
    ]
    return markdown([head, *rows])


def _readme(scores: Scores) -> str:
    """The README's table: the optimizer alone, the default, and, if they are recorded, the best peer and the controls.

    At the weights that are evaluated: some peers train others.
    """
    arms = {
        "recommended": "`pdt(inner)`, the default",
        **{name: f"best alternative, `{name}`" for name in _best_peer(scores)},
        "random-order": "control: past motions at random, not the recent ones",
        "random-mask": "control: an older rule, `presets.drift`, on random weights alone",
    }
    rows, columns = (
        [],
        [SUMMARY_HEADER.index(name) for name in ("at evaluated weights", "difference in points")],
    )
    for arm, label in arms.items():
        found = _of(scores, arm)
        if not found:
            continue
        median, worst = summary_rows({pair: {arm: score} for pair, score in found.items()})
        diverged = f"{median[-1]} of {sum(score.seeds for score in found.values())}"
        of = "" if len(found) == len(scores) else f" ({len(found)} tasks)"
        rows.append((label + of, *(line[i] for i in columns for line in (median, worst)), diverged))
    head = (
        "",
        "effective schedule, median task",
        "worst task",
        "accuracy in points, median task",
        "worst task",
        "runs that diverged",
    )
    return markdown([head, ("the optimizer alone", "1", "1", "0", "0", ""), *rows])


def _best_peer(scores: Scores) -> list[str]:
    """The peer with the best median at the weights that it evaluates, of those that are recorded on most pairs; none if there is none."""
    found = {
        arm.name: [s.effective_probe.value for s in _of(scores, arm.name).values()] for arm in setups.PEERS
    }
    medians = {name: statistics.median(v) for name, v in found.items() if 2 * len(v) > len(scores)}
    return [max(medians, key=lambda name: medians[name])] if medians else []


def _final(scores: Scores) -> Figures:
    drift = _of(scores, "drift")
    return {
        "bench.greatest-rise": f"{max(score.rise for score in drift.values()):.2f}",
        **{f"bench.epochs-{pair}": f"{drift[pair].loss_epochs:.1f}" for pair in ("mlp-sgd", "vit-adamw")},
    }


# What each arm of the ablation changes.
CHANGED = {
    "recommended": "nothing: the default",
    "slow-jump": "delivered as a jump at the epoch's end",
    "slow-steady": "the gain stays 1",
    "slow-outward": "the weights may grow by it",
    "slow-short": "the mean looks back on one epoch",
    "slow-start-1": "from the end of the second epoch on",
    "slow-agree": "where signs agree alone",
}


def _ablation(scores: Scores) -> Figures:
    """Effective schedules of the default with one part changed at a time."""
    rows = [
        (change, *(interval(of[arm].effective) if arm in of else "-" for of in scores.values()))
        for arm, change in CHANGED.items()
    ]
    return {"ablation.table": markdown([("changed", *(f"`{pair}`" for pair in scores)), *rows])}


def _around(scores: Scores) -> Figures:
    """Effective schedules, at evaluated weights, of the default around peers, and of these alone."""

    def cells(pair: str) -> list[str]:
        of = scores[pair]
        names = [name for arm in setups.AROUND for name in (arm.of.name, arm.name)]
        return [interval(of[name].effective_probe) if name in of else "-" for name in names]

    head = ["pair", *(name for arm in setups.AROUND for name in (arm.of.name, "with the default"))]
    return {"around.table": markdown([head, *([f"`{pair}`", *cells(pair)] for pair in scores)])}


def _inspect() -> Figures:
    """The tuned pairs as `pdt_optax.inspect` ships them, and how well each is told by the others."""
    head = ("pair", "mean cosine of plain training", "persistence", "the default is worth")
    rows = [
        (
            f"`{p.name}`",
            f"{p.alignment:.2f}",
            f"{round(p.persistence, 2) + 0.0:.2f}",
            f"{p.effective:.2f} ({p.low:.2f} to {p.high:.2f})",
        )
        for p in sorted(inspect.pairs(), key=lambda pair: pair.alignment)
    ]
    told = inspect.left_out()
    bands = {
        "below 0.05": [p.effective for p in inspect.pairs() if p.persistence < 0.05],
        "up to 0.25": [p.effective for p in inspect.pairs() if 0.05 <= p.persistence < 0.25],
        "above": [p.effective for p in inspect.pairs() if p.persistence >= 0.25],
    }
    worth = [f"{min(of):.2f} to {max(of):.2f} where that was {band}" for band, of in bands.items()]
    off = [max(pair.effective / e.value, e.value / pair.effective) for pair, e in told]
    missed = [f"`{pair.name}`" for pair, e in told if not e.low <= pair.effective <= e.high]
    return {
        "inspect.bands": f"{listed(worth)}.",
        "inspect.pairs": markdown([head, *rows]),
        "inspect.left-out": f"the value was off by a factor of {statistics.median(off):.2f} in the median and "
        f"{max(off):.2f} at most, and {len(told) - len(missed)} of {len(told)} lay in their interval"
        + (f" (not {listed(missed) if len(missed) > 1 else missed[0]})." if missed else "."),
    }


def _to_baseline(score: Score, baseline: Score, form: str) -> str:
    return f"{score.loss / baseline.loss:{form}}"


def _screen(scores: Scores) -> Figures:
    pairs = ("mlp-sgd", "vit-adamw")
    head = ["arm", *(f"{pair}: {column}" for pair in pairs for column in ("epochs", "loss", "points"))]
    rows = [
        [
            arm.name,
            *(
                cell
                for score, baseline in ((scores[pair][arm.name], scores[pair][BASELINE]) for pair in pairs)
                for cell in (
                    number(score.loss_epochs, ".0f"),
                    _to_baseline(score, baseline, ".2g"),
                    points(score.gain),
                )
            ),
        ]
        for arm in setups.SCREEN
    ]
    return {"screen.table": markdown([head, *rows])}


def _jumps(scores: Scores) -> Figures:
    of = scores["mlp-sgd"]

    def loss(start: int, horizon: int, form: str = ".2f") -> str:
        return _to_baseline(of[setups.JUMPS[start, horizon].name], of[BASELINE], form)

    return {
        "jumps.long": loss(16, 8),
        "jumps.short": loss(24, 1),
        "jumps.early": loss(8, 8, ".1f"),
    }


def _guard(scores: Scores) -> Figures:
    head = ["pair", "arm", "final train loss over baseline's", "points", "diverged"]
    rows = [
        [
            pair,
            arm.name,
            _to_baseline(of[arm.name], of[BASELINE], ".3g"),
            points(of[arm.name].gain),
            str(of[arm.name].diverged),
        ]
        for pair, of in scores.items()
        for arm in setups.RUNAWAY
    ]
    loosely = scores["char_lm-adamw"]
    return {
        "guard.table": markdown([head, *rows]),
        "guard.loosely": _to_baseline(loosely["runaway-loosely-guarded"], loosely[BASELINE], ".2f"),
    }


def _statistics(scores: Scores) -> Figures:
    of = scores["resnet-adamw"]
    return {
        "statistics.kept": f"{-100 * of['drift'].dip:.2f}",
        "statistics.anew": f"{-100 * of['drift-refreshed'].dip:.2f}",
    }


def _paper(folder: Path) -> Figures:
    def range_saved(table: str, rule: str) -> str:
        found = find(VIEWS[table], Asked((folder,))).values()
        judged = [j for f in found if (j := claims.judge(f.runs, rule))]
        return _range([j.saved for j in judged if math.isfinite(j.saved)])

    compared = [find(VIEWS[table], Asked((folder,))) for table in ("table2", "table4", "table6")]
    # Table 6's last row is Table 2's first.
    rows = list({str(found.runs[0].fields): found for finds in compared for found in finds.values()}.values())
    rules = dict.fromkeys(rule for found in rows for rule in found.rules if rule != BASELINE)
    runs_of = [records.read_all(folder / "small" / "records" / name) for name in paper_setups.setups("small")]
    seconds = [statistics.median(_seconds(run) for run in runs) for runs in runs_of if runs]
    return {
        "paper.claims": page.claims_table(
            folder, {name: view.folder("small") for name, view in VIEWS.items()}, "../experiments/results"
        ),
        "paper.variants": markdown([claims.SUMMARY_HEADER, *(claims.summary(rows, rule) for rule in rules)]),
        "paper.architectures": range_saved("table1", "recommended"),
        "paper.optimizers": range_saved("table2", "recommended"),
        "paper.longest": f"{max(seconds):.1f}",
    }


def _seconds(run: records.Run) -> float:
    return sum(e[part] for e in run.epochs for part in ("train_seconds", "pdt_seconds", "compile_seconds"))


def _paper_size(folder: Path) -> Figures:
    """The paper's AlexNet on a GPU, one seed."""
    runs = {run.rule: run for run in records.read_all(folder)}
    baseline, drift = runs[BASELINE], runs["drift"]
    trained, spent = (sum(e[of] for e in drift.epochs) for of in ("train_seconds", "pdt_seconds"))

    def sooner(rule: str, field: str) -> int:
        first, own = (metrics.to_best(run, baseline, field).epochs for run in (baseline, runs[rule]))
        return round(first - own)

    epoch = statistics.median(e["train_seconds"] for e in drift.epochs)
    jumps = [e["pdt_seconds"] for e in drift.epochs if e["predicted"]]
    ends = [run.epochs[-1]["validation_accuracy"] for run in runs.values()]
    return {
        "h100.epoch": f"{epoch:.3f}",
        "h100.epoch-rounded": f"{epoch:.2f}",
        "h100.jumps": str(len(jumps)),
        "h100.jump-ms": f"{1e3 * statistics.median(jumps):.0f}",
        "h100.spent": f"{spent:.2f}",
        "h100.whole": f"{trained + spent:.0f}",
        "h100.share": f"{spent / (trained + spent):.1%}",
        **{
            f"h100.{rule}-{name}": str(sooner(rule, field))
            for rule in ("drift", "released")
            for name, field in (("loss", "train_loss"), ("accuracy", "validation_accuracy"))
        },
        "h100.accuracy": f"{math.floor(1e3 * min(ends)) / 10} and {math.ceil(1e3 * max(ends)) / 10}%",
    }
