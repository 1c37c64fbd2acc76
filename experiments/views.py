"""The paper's tables and figures as views over records: what each needs, and how it is shown. Nothing here trains."""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from experiments import pictures, records, report, setups, toy
from experiments.arms import BASELINE, Arm, preset
from experiments.bench_report import diverged
from experiments.records import Run
from experiments.setups import SCALES, Setup
from experiments.training import Config

PAPER: Mapping[str, Any] = json.loads((Path(__file__).parent / "paper.json").read_text())
ACCURACY_LOST = 0.01  # at most, where a claim holds

RULE_OF_JUDGEMENT = (
    "A row holds for a rule if every seed reaches its baseline's best train loss, in less time than the baseline's "
    "own first crossing took on average, and mean final accuracy is at most one point lower. *Holds*: in all rows. "
    "*Holds only at low learning rates*: of rows that differ in their learning rate, in all up to some rate and in none "
    "above it, for every batch size. Otherwise the rows are counted; *does not hold*: in none."
)


class Row(NamedTuple):
    """A setup under the name that the paper's table gives it."""

    label: str
    setup: str


class Found(NamedTuple):
    """What is recorded of a row: its complete runs, and the arrays of those of the first seed, by arm."""

    runs: list[Run]
    arrays: Mapping[str, Mapping[str, np.ndarray]]

    def of(self, rule: str) -> list[Run]:
        """The runs of one arm."""
        return [run for run in self.runs if run.rule == rule]

    @property
    def rules(self) -> list[str]:
        """The arms that there are, the baseline first."""
        return list(dict.fromkeys(run.rule for run in self.runs))


Finds = Mapping[str, Found]


class Shown(NamedTuple):
    """What a view came to: tables as lines of cells, the first a header; pictures; and what of the claim holds."""

    tables: Mapping[str, Sequence[Sequence[str]]]
    pictures: Mapping[str, str]
    verdicts: Sequence[str]


Render = Callable[["View", Finds, Path], Shown]


class View(NamedTuple):
    """A table or figure.

    Attributes:
      name, title, claim: what the paper calls it, what it shows, and what the paper says.
      rows: by scale; none if nothing is trained.
      render: draws into a folder.
      arms: from the rules that are shown; by default those themselves.
      seeds: all, fewer, or the first alone, as the scale has them.
      note: what else a reader must know.
    """

    name: str
    title: str
    claim: str
    rows: Callable[[str], Sequence[Row]]
    render: Render
    arms: Callable[[Sequence[str]], Sequence[Arm]] = lambda rules: [preset(rule) for rule in rules]
    seeds: str = "fewer"
    note: str = ""

    def configs(
        self, scale: str, rules: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[tuple[Row, Setup, Config]]:
        """All runs that the view takes. Those of a seed follow each other: machines' speeds drift."""
        size = SCALES[scale]
        chosen = {"all": seeds or size.seeds[0], "fewer": seeds or size.seeds[1], "first": setups.SEEDS[:1]}
        known = setups.setups(scale)
        arms = {arm.name: arm for arm in self.arms(rules)}.values()
        return [
            (row, known[row.setup], known[row.setup].config(arm, seed))
            for row in self.rows(scale)
            for seed in chosen[self.seeds]
            for arm in arms
        ]


def folder_of(out: Path, scale: str, setup: str) -> Path:
    """Where the records of a setup lie; views share them."""
    return out / scale / "records" / setup


def find(view: View, scale: str, rules: Sequence[str], seeds: Sequence[int] | None, out: Path) -> Finds:
    """What is recorded of a view."""
    found: dict[str, Found] = {}
    for row, _, config in view.configs(scale, rules, seeds):
        folder = folder_of(out, scale, row.setup)
        run = records.read(folder, config)
        if run.complete:
            entry = found.setdefault(row.label, Found([], {}))
            entry.runs.append(run)
            if config.watch:
                found[row.label] = entry._replace(
                    arrays={**entry.arrays, run.rule: records.arrays(folder, config)}
                )
    return found


# Tables: the paper's rows beside ours.

COLUMNS = {
    "": None,
    "by": None,
    "method": None,
    "seeds": "seeds",
    "final accuracy": "final_accuracy",
    "best train loss": "best_loss",
    "epochs to baseline's best train loss": "loss_epochs",
    "seconds": "loss_seconds",
    "time saved": "loss_saved",
    "seconds to baseline's best accuracy": "accuracy_seconds",
    "time saved to accuracy": "accuracy_saved",
    "diverged": None,
}


def _given(value: Any) -> str:
    """A number of the paper, or a mean and a deviation."""
    if value is None:
        return ""
    return f"{value[0]:g} ± {value[1]:g}" if isinstance(value, list) else f"{value:g}"


def _paper_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    saved = {name: f"{row[name]:g}%" if name in row else "" for name in ("saved_loss", "saved_accuracy")}
    return (
        row["row"],
        "paper",
        row["method"],
        "",
        _given(row.get("accuracy")),
        _given(row.get("best_loss")),
        "",
        _given(row.get("ttb_loss")),
        saved["saved_loss"],
        _given(row.get("ttb_accuracy")),
        saved["saved_accuracy"],
        "",
    )


def _our_lines(label: str, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    baselines = {run.seed: run for run in runs if run.rule == BASELINE}
    lines = []
    for line in report.rows(runs):
        cells = [getattr(line, field) if field else "" for field in COLUMNS.values()]
        failed = [diverged(r, baselines[r.seed]) for r in runs if r.rule == line.rule and r.seed in baselines]
        cells[:3], cells[-1] = [label, "here", line.rule], f"{sum(failed)} of {len(failed)}"
        lines.append(tuple(cells))
    return lines


def comparison(name: str, finds: Finds) -> list[tuple[str, ...]]:
    """A table: for each row the paper's lines, then ours."""
    given = PAPER.get(name, {"rows": []})["rows"]
    labels = list(dict.fromkeys([*finds, *(row["row"] for row in given)]))
    order = {row["row"]: i for i, row in reversed(list(enumerate(given)))}
    lines = [tuple(COLUMNS)]
    for label in sorted(labels, key=lambda label: order.get(label, math.inf)):
        if label in finds:
            lines += [_paper_line(row) for row in given if row["row"] == label]
            lines += _our_lines(label, finds[label].runs)
    return lines


def holds(runs: Sequence[Run], rule: str) -> bool | None:
    """Whether a row holds for a rule, as `RULE_OF_JUDGEMENT` says; None if the rule or its baselines are not there."""
    baselines = {run.seed: run for run in runs if run.rule == BASELINE}
    pairs = [(run, baselines[run.seed]) for run in runs if run.rule == rule and run.seed in baselines]
    if not pairs:
        return None
    ratio = np.mean([report.compare(*pair).loss_ratio for pair in pairs])
    lost = np.mean([base.epochs[-1]["validation_accuracy"] - run.epochs[-1]["validation_accuracy"] for run, base in pairs])
    return bool(ratio < 1 and lost <= ACCURACY_LOST)


def verdicts(finds: Finds, rules: Sequence[str] | None = None) -> list[str]:
    """For each rule, in how much of the table the claim of saved time holds."""
    shown = dict.fromkeys(rule for found in finds.values() for rule in found.rules if rule != BASELINE)
    said = []
    for rule in rules or shown:
        held = {label: holds(found.runs, rule) for label, found in finds.items()}
        held = {label: bool(h) for label, h in held.items() if h is not None}
        if held:
            said.append(f"{rule}: {_verdict(held, {label: finds[label] for label in held})}")
    return said


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


def table(view: View, finds: Finds, folder: Path) -> Shown:
    """The comparison alone."""
    del folder
    return Shown({"": comparison(view.name, finds)}, {}, verdicts(finds))


def curves(view: View, finds: Finds, folder: Path, fields: Sequence[str] = ()) -> Shown:
    """Curves of every row, and their comparison."""
    drawn = {}
    for i, (label, found) in enumerate(finds.items()):
        name = f"{view.name}-{i + 1}.png" if len(finds) > 1 else f"{view.name}.png"
        shown = fields or ("train_loss", "validation_accuracy", "accepted_share")
        pictures.curves({rule: found.of(rule) for rule in found.rules}, shown, folder / name, label)
        drawn[name] = f"{label}: means over seeds, bands from the least to the greatest"
    return Shown({"": comparison(view.name, finds)}, drawn, verdicts(finds))


def _rows(*pairs: tuple[str, str]) -> Callable[[str], Sequence[Row]]:
    return lambda scale: [Row(*pair) for pair in pairs]


ALEXNET = _rows(("AlexNet", "alexnet-sgd-0.05"))
ARCHITECTURES = _rows(
    ("FCN", "fcn"),
    ("AlexNet", "alexnet-sgd-0.05"),
    ("ResNet-50", "resnet50"),
    ("ViT-Base", "vit-base"),
    ("ViT-Huge", "vit-huge"),
)


def _optimizer_rows(scale: str, names: Sequence[str] | None = None) -> list[Row]:
    del scale
    return [
        Row(f"{name}, lr {rate:g}", f"alexnet-sgd-{rate:g}" if name == "SGD" else f"alexnet-{optimizer}")
        for name, (optimizer, rate) in setups.optimizers().items()
        if names is None or name in names
    ]


VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View(
            "fig4",
            "AlexNet with SGD: train loss, validation accuracy, accepted share",
            "PDT reaches the baseline's best train loss and best validation accuracy sooner.",
            ALEXNET,
            curves,
            seeds="all",
        ),
        View(
            "table1",
            "Time to the baseline's best, by architecture",
            "PDT reaches the baseline's best train loss in 10 to 40% less time on every architecture.",
            ARCHITECTURES,
            table,
            seeds="all",
            note="At scale small the ResNet and ViT rows are small members of the same families.",
        ),
        View(
            "table2",
            "Seven optimizers",
            "PDT consistently reduces the time to the baseline's best loss across these optimizers.",
            _optimizer_rows,
            table,
            seeds="all",
        ),
    )
}
