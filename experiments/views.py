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
      arms: from the rules that are shown and the scale; by default those rules themselves.
      seeds: all, fewer, or the first alone, as the scale has them.
      note: what else a reader must know.
    """

    name: str
    title: str
    claim: str
    rows: Callable[[str], Sequence[Row]]
    render: Render
    arms: Callable[[Sequence[str], str], Sequence[Arm]] = lambda rules, scale: [preset(r) for r in rules]
    seeds: str = "fewer"
    note: str = ""

    def configs(
        self, scale: str, rules: Sequence[str], seeds: Sequence[int] | None = None
    ) -> list[tuple[Row, Setup, Config]]:
        """All runs that the view takes. Those of a seed follow each other: machines' speeds drift."""
        size = SCALES[scale]
        chosen = {"all": seeds or size.seeds[0], "fewer": seeds or size.seeds[1], "first": setups.SEEDS[:1]}
        known = setups.setups(scale)
        arms = {arm.name: arm for arm in self.arms(rules, scale)}.values()
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
    lost = np.mean(
        [
            base.epochs[-1]["validation_accuracy"] - run.epochs[-1]["validation_accuracy"]
            for run, base in pairs
        ]
    )
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


def _sweep_rows(scale: str, table: str) -> list[Row]:
    size = SCALES[scale]
    if table == "table6":
        return [Row(f"lr {rate:g}", f"alexnet-sgd-{rate:g}") for rate in size.learning_rates]
    return [
        Row(f"batch {batch}, lr {rate:g}", f"alexnet-b{batch}-{rate:g}")
        for batch in size.batches
        for rate in size.learning_rates
    ]


# Figures with a claim of their own.


def _final(found: Found, rule: str, field: str = "train_loss") -> float:
    return float(np.mean([run.epochs[-1][field] for run in found.of(rule)]))


def _failures(found: Found, rule: str) -> tuple[int, int]:
    """How many runs of an arm diverged, and how many there are."""
    baselines = {run.seed: run for run in found.of(BASELINE)}
    failed = [diverged(run, baselines[run.seed]) for run in found.of(rule) if run.seed in baselines]
    return sum(failed), len(failed)


def depth(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 2: whether predictions on all weights fail where masked ones do not."""
    shown = curves(view, finds, folder, ("train_loss", "validation_accuracy"))
    said = list(shown.verdicts)
    for label, found in finds.items():
        for rule in found.rules:
            if rule.endswith("-unmasked"):
                failed, count = _failures(found, rule)
                said.append(f"{label}, {rule}: {failed} of {count} runs diverged")
    return shown._replace(verdicts=said)


def random_masks(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 5: what a random mask of the same share does."""
    shown = curves(view, finds, folder, ("train_loss", "validation_accuracy", "accepted_share"))
    said = list(shown.verdicts)
    for found in finds.values():
        for rule in found.rules:
            masked = rule.removesuffix("-random")
            if rule != masked and masked in found.rules:
                failed, count = _failures(found, rule)
                worse = _final(found, rule) > _final(found, masked)
                kind = "holds" if failed == count else "holds in part" if failed else "does not hold"
                said.append(
                    f"a random mask ruins the run, {masked}: {kind} ({failed} of {count} diverged; its final train loss "
                    f"is {'higher' if worse else 'no higher'} than the rule's: {_final(found, rule):.3g} against "
                    f"{_final(found, masked):.3g})"
                )
    return shown._replace(verdicts=said)


def switched(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 6: whether switching on the validation loss ruins the run."""
    shown = curves(view, finds, folder, ("train_loss", "validation_loss"))
    said = []
    for found in finds.values():
        failed, count = _failures(found, "switching")
        kind = "holds" if count and failed == count else "holds in part" if failed else "does not hold"
        said.append(f"switching on the validation loss ruins the run: {kind} ({failed} of {count} diverged)")
    return shown._replace(verdicts=said)


def toy_view(view: View, finds: Finds, folder: Path) -> Shown:
    """Figs. 7 and 8: computed here, in a second; nothing is random."""
    del finds
    runs = {
        "gradient descent": toy.descend(optax.sgd(toy.LEARNING_RATE)),
        "x, y, z three times faster": toy.descend(optax.sgd(toy.LEARNING_RATE), toy.FASTER),
        "PDT": toy.descend(toy.predictive()),
    }
    given = {row["row"]: row["steps"] for row in PAPER[view.name]["rows"]}
    runs = {name: run for name, run in runs.items() if name in given}
    toy.trajectory_picture(runs, folder / f"{view.name}.png")
    drawn = {f"{view.name}.png": "trajectories in the x-y plane over the loss"}
    if view.name == "fig8":
        toy.loss_picture(runs, folder / "fig8-loss.png")
        drawn["fig8-loss.png"] = "loss against steps"
    lines = [("", "steps here", "steps in the paper")]
    lines += [(name, str(runs[name].steps), str(steps)) for name, steps in given.items()]
    same = all(runs[name].steps == steps for name, steps in given.items())
    return Shown({"": lines}, drawn, ["holds: the same steps" if same else "does not hold"])


def operations(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 9: loss against epochs and against operations, the predictions' own included."""
    lines = [
        (
            "",
            "by",
            "method",
            "operations in an epoch",
            "to the baseline's best train loss",
            "saved",
            "final accuracy",
        )
    ]
    for row in PAPER["fig9"]["rows"]:
        cells = (
            f"{row['epoch_tflops']:g} T",
            f"{row['tflops']:g} T",
            f"{row['saved']:g}%" if "saved" in row else "",
        )
        lines.append((row["row"], "paper", row["method"], *cells, f"{row['accuracy']:g}"))
    said, drawn = [], {}
    for label, found in finds.items():
        counted = {rule: [run for run in found.of(rule) if "flops" in run.fields] for rule in found.rules}
        (base,) = counted[BASELINE] or (None,)
        if base is None:
            continue
        own = _operations(base)[report.to_best(base, base, "train_loss").epochs - 1]
        for rule, runs in counted.items():
            for run in runs:
                work, crossing = _operations(run), report.to_best(run, base, "train_loss").epochs
                spent = work[crossing - 1] if math.isfinite(crossing) else math.inf
                mean, accuracy = work[-1] / len(work), run.epochs[-1]["validation_accuracy"]
                shown = f"{spent / 1e12:.4g} T" if math.isfinite(spent) else "never"
                saved = f"{100 * (1 - spent / own):.0f}%" if math.isfinite(spent) and rule != BASELINE else ""
                lines.append((label, "here", rule, f"{mean / 1e12:.4g} T", shown, saved, f"{accuracy:.4f}"))
                if rule != BASELINE:
                    said.append(f"{rule}: {'holds' if spent < own else 'does not hold'}")
        pictures.operations(
            {rule: (runs, _operations(runs[0])) for rule, runs in counted.items() if runs},
            folder / "fig9.png",
            label,
        )
        drawn["fig9.png"] = "train loss over epochs, and over all operations, those of PDT included; seed 0"
    return Shown({"": lines}, drawn, said)


def _operations(run: Run) -> np.ndarray:
    """(epochs,), of the steps and the predictions so far; an epoch's end without a prediction is a copy."""
    fields = run.fields
    steps = fields["steps"] or fields["examples"] // fields["batch_size"]
    each = [
        steps * fields["flops"]["step"] + e["predicted"] * fields["flops"]["boundary"] for e in run.epochs
    ]
    return np.cumsum(each)


def _is_convolution(leaf: str) -> bool:
    return "conv" in leaf


def shares(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 11: the accepted share by layer, and by its type."""
    said, drawn, tables = [], {}, {}
    for label, found in finds.items():
        for run in found.runs:
            jumps = [e for e in run.epochs if "shares" in e]
            if not jumps:
                continue
            kernels = [leaf for leaf in jumps[0]["shares"] if leaf.endswith("kernel")]
            name = f"fig11-{run.rule}.png"
            pictures.shares(run, kernels, _is_convolution, folder / name, f"{label}, {run.rule}")
            drawn[name] = f"{run.rule}, seed {run.seed}: accepted share of each layer's kernel at every jump"
            by_type = [
                [
                    np.mean([e["shares"][leaf] for leaf in kernels if _is_convolution(leaf) == kind])
                    for e in jumps
                ]
                for kind in (True, False)
            ]
            higher = int(np.sum(np.greater(*by_type)))
            overall = [e["accepted_share"] for e in jumps]
            half = max(1, len(overall) // 2)
            falls = np.mean(overall[-half:]) < np.mean(overall[:half])
            kind = "holds" if higher == len(jumps) else "does not hold"
            said.append(
                f"{run.rule}: convolutions accept more than dense layers: {kind} (at {higher} of {len(jumps)} jumps); "
                f"the share falls as training goes on: {'holds' if falls and len(jumps) > 1 else 'does not hold'}"
            )
            tables[run.rule] = [
                ("epoch", "all weights", *kernels),
                *(
                    (
                        str(e["epoch"]),
                        f"{e['accepted_share']:.3f}",
                        *(f"{e['shares'][k]:.3f}" for k in kernels),
                    )
                    for e in jumps
                ),
            ]
    return Shown(tables, drawn, said)


def masks(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 12: where in each layer the weights jumped."""
    drawn = {}
    for label, found in finds.items():
        for rule, arrays in found.arrays.items():
            if "mask" in arrays:
                name = f"fig12-{rule}.png"
                pictures.mask(arrays, folder / name, f"{label}, {rule}, epoch {int(arrays['mask_epoch'])}")
                drawn[name] = (
                    f"{rule}: the share of weights that jumped, in the order of each kernel's weights"
                )
    return Shown({}, drawn, [])


def landscapes(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 1: each run's path in its own principal plane."""
    drawn, said = {}, []
    for label, found in finds.items():
        seen = {rule: arrays for rule, arrays in found.arrays.items() if "landscape_loss" in arrays}
        if not seen:
            continue
        pictures.landscapes(seen, folder / "fig1.png", label)
        drawn["fig1.png"] = (
            "each run's path in the plane of its two principal directions, and the train loss there (mean of the "
            "first training images, dropout off); rings mark predictions"
        )
        said = verdicts({label: found._replace(runs=[r for r in found.runs if r.rule in seen])})
    return Shown({"": comparison("", finds)} if finds else {}, drawn, said)


def hyperparameters(view: View, finds: Finds, folder: Path) -> Shown:
    """Fig. 14: one setting at a time."""
    drawn, lines = {}, [("setting", "value", *list(COLUMNS)[3:])]
    for label, found in finds.items():
        panels: dict[str, dict[int, list[Run]]] = {}
        for name, values in _variants(found).items():
            for value in values:
                arm = setups.variant(**{name: value}).name
                panels.setdefault(name, {})[value] = found.of(arm)
                ours = [line for line in _our_lines(label, found.runs) if line[2] == arm]
                lines += [(name, str(value), *line[3:]) for line in ours]
        pictures.hyperparameters(panels, found.of(BASELINE), folder / "fig14.png", label)
        drawn["fig14.png"] = (
            f"{label}: train loss by one setting of the released rule at a time; means over seeds"
        )
    return Shown({"": lines}, drawn, verdicts(finds))


def _variants(found: Found) -> dict[str, list[int]]:
    """Fig. 14's settings of which there are runs, at whatever scale."""
    every: dict[str, set[int]] = {}
    for size in SCALES.values():
        for name, values in size.variants.items():
            every.setdefault(name, set()).update(values)
    return {
        name: [v for v in sorted(values) if found.of(setups.variant(**{name: v}).name)]
        for name, values in every.items()
    }


def _presets(rules: Sequence[str]) -> list[str]:
    return [rule for rule in rules if rule != BASELINE]


def _random(rules: Sequence[str], scale: str) -> list[Arm]:
    """The rules, and each of them at random."""
    del scale
    return [*map(preset, rules), *map(setups.random_mask, _presets(rules))]


def _one_changed(rules: Sequence[str], scale: str) -> list[Arm]:
    """The released rule with one setting changed, whatever the rules."""
    del rules
    changes = [{name: v} for name, values in SCALES[scale].variants.items() for v in values]
    return [preset(BASELINE), *(setups.variant(**change) for change in changes)]


def _of_depth(rules: Sequence[str], scale: str) -> list[Arm]:
    """The rules, and the paper's two on all weights."""
    del scale
    unmasked = [f"{rule}-unmasked" for rule in rules if rule in ("paper", "released")]
    return [setups.every_third(name) for name in (*rules, *unmasked)]


FASTER = "PDT reaches the baseline's best train loss in less time, without losing accuracy."

VIEWS: dict[str, View] = {
    view.name: view
    for view in (
        View(
            "fig1",
            "Paths through weight space, Adam against PDT",
            "Against Adam, PDT moves faster over the loss surface.",
            _rows(("AlexNet, Adam", "alexnet-adam")),
            landscapes,
            seeds="first",
            note="Every run has a plane of its own: the two are not to be laid over each other.",
        ),
        View(
            "fig2",
            "Fully connected networks of 2, 4 and 6 layers",
            "Predictions on all weights fail as networks grow deeper; masked by PDT they speed training up.",
            _rows(*((f"FCNet, {d} layers", f"fcnet-{d}") for d in (2, 4, 6))),
            depth,
            arms=_of_depth,
            note="A prediction, five epochs ahead where the rule does not say otherwise, ends every third epoch.",
        ),
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
        ),
        View(
            "table2",
            "Seven optimizers",
            "PDT consistently reduces the time to the baseline's best loss across these optimizers.",
            _optimizer_rows,
            table,
            seeds="all",
        ),
        View(
            "table3",
            "SimSiam",
            "PDT's advantages generalize to self-supervised learning.",
            _rows(("SimSiam", "simsiam")),
            curves,
            note="Accuracy is that of a linear probe of the backbone's features, a ridge regression.",
        ),
        View(
            "fig5",
            "A random mask of the same ratio",
            "Randomly masked predictions quite frequently end in gradient explosions; PDT's mask prevents them.",
            _rows(("AlexNet, lr 0.01", "alexnet-b256-0.01")),
            random_masks,
            arms=_random,
        ),
        View(
            "fig6",
            "Switching between prediction and SGD on the validation loss",
            "Switching on the validation loss leads to a surge in loss from which the model does not recover.",
            _rows(("AlexNet, lr 0.01", "alexnet-b256-0.01")),
            switched,
            arms=lambda rules, scale: [preset(BASELINE), setups.switching()],
            note="The paper states no settings: those of Fig. 5. Predictions are the released rule's, on all weights.",
        ),
        View(
            "fig7",
            "The toy problem: three variables sped up",
            "Three of six variables sped up threefold reach the threshold in 25 steps instead of 53.",
            _rows(),
            toy_view,
        ),
        View(
            "fig8",
            "The toy problem: PDT",
            "PDT reaches the threshold in 27 steps instead of 53.",
            _rows(),
            toy_view,
            note="With modes projected, fitted to the newest weights, start 6, and Eqs. 7 and 8: see `experiments/toy.py`.",
        ),
        View(
            "fig9",
            "Loss against epochs and against operations",
            "PDT needs 24% fewer operations to the baseline's best train loss, its own included.",
            ALEXNET,
            operations,
            seeds="first",
            note="Operations are XLA's count of the program as written, where an addition and a multiplication are two.",
        ),
        View(
            "fig10",
            "Training curves by architecture",
            "PDT reaches the baseline's best train loss sooner, and its accepted share falls as training goes on.",
            ARCHITECTURES,
            curves,
            seeds="all",
        ),
        View(
            "fig11",
            "Accepted share by layer and by its type",
            "Convolutions accept more than dense layers throughout, and shares fall in the end.",
            ALEXNET,
            shares,
            seeds="first",
        ),
        View(
            "fig12",
            "Where the mask accepts",
            "Accepted weights are not spread evenly: some layers show clusters.",
            ALEXNET,
            masks,
            seeds="first",
            note="At the first jump after a third of the epochs; epoch 20 of 60 in the paper.",
        ),
        View(
            "fig13",
            "Batches of one class each: curves",
            "PDT keeps its advantage where batches are not i.i.d.",
            _rows(("i.i.d.", "alexnet-iid"), ("non-i.i.d.", "alexnet-classes")),
            functools.partial(curves, fields=("train_loss", "validation_accuracy")),
            seeds="all",
        ),
        View(
            "table4",
            "Batches of one class each",
            "PDT keeps its advantage where batches are not i.i.d.",
            _rows(("i.i.d.", "alexnet-iid"), ("non-i.i.d.", "alexnet-classes")),
            table,
            seeds="all",
            note=PAPER["table4"]["note"],
        ),
        View(
            "fig14",
            "Horizon, interval, start and window",
            "Longer horizons speed training up until, at nine or so, errors grow; the others matter less.",
            ALEXNET,
            hyperparameters,
            arms=_one_changed,
            note="One setting of the released rule at a time; the paper states no learning rate: that of Fig. 4.",
        ),
        View(
            "table5",
            "Batch sizes and learning rates",
            "At lower learning rates PDT consistently beats SGD; at 0.1 its advantage is less pronounced.",
            functools.partial(_sweep_rows, table="table5"),
            table,
            note=PAPER["table5"]["note"],
        ),
        View(
            "table6",
            "Learning rates under a cosine schedule",
            "With the schedule PDT improves at all learning rates.",
            functools.partial(_sweep_rows, table="table6"),
            table,
            seeds="all",
        ),
        View(
            "table7",
            "SGD, momentum and Adam",
            FASTER,
            functools.partial(_optimizer_rows, names=("SGD", "Momentum", "Adam")),
            table,
            seeds="all",
        ),
    )
}
