"""The paper's tables and figures as views over records: what each says and what it needs. Nothing here trains."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.paper import figures, setups
from experiments.paper.claims import Finds, Found
from experiments.paper.figures import PAPER, Shown
from experiments.paper.setups import SCALES, Setup
from experiments.training import records
from experiments.training.arms import BASELINE, Arm, preset
from experiments.training.trainer import Config


class Row(NamedTuple):
    """A setup under the name that the paper's table gives it."""

    label: str
    setup: str


Rules = Sequence[str] | None  # the baseline and presets; None for those that the scale shows

Render = Callable[[str, Finds, Path], Shown]


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
        self, scale: str, rules: Rules = None, seeds: Sequence[int] | None = None
    ) -> list[tuple[Row, Setup, Config]]:
        """All runs that the view takes. Those that differ only in their seed follow each other and compile once."""
        size = SCALES[scale]
        chosen = {"all": seeds or size.seeds[0], "fewer": seeds or size.seeds[1], "first": setups.SEEDS[:1]}
        known = setups.setups(scale)
        shown = rules or size.rules_of.get(self.name, size.rules)
        arms = {arm.name: arm for arm in self.arms(shown, scale)}.values()
        return [
            (row, known[row.setup], known[row.setup].config(arm, seed))
            for row in self.rows(scale)
            for arm in arms
            for seed in chosen[self.seeds]
        ]


def folder_of(out: Path, scale: str, setup: str) -> Path:
    """Where the records of a setup lie; views share them."""
    return out / scale / "records" / setup


def placed(
    view: View, scale: str, rules: Rules, seeds: Sequence[int] | None, *results: Path
) -> list[tuple[Path, Row, Setup, Config]]:
    """All runs of a view, each with the folder of its record: a row's are in the first of `results` that has them all."""
    runs = view.configs(scale, rules, seeds)
    folders = {
        row: records.place(
            [folder_of(out, scale, row.setup) for out in results], [c for r, _, c in runs if r == row]
        )
        for row in view.rows(scale)
    }
    return [(folders[row], row, setup, config) for row, setup, config in runs]


def find(view: View, scale: str, rules: Rules, seeds: Sequence[int] | None, *results: Path) -> Finds:
    """What is recorded of a view."""
    found: dict[str, Found] = {}
    for folder, row, _, config in placed(view, scale, rules, seeds, *results):
        run = records.read(folder, config)
        if run.complete:
            entry = found.setdefault(row.label, Found([], {}))
            entry.runs.append(run)
            if config.watch:
                found[row.label] = entry._replace(
                    arrays={**entry.arrays, run.rule: records.arrays(folder, config)}
                )
    return found


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


def _presets(rules: Sequence[str]) -> list[str]:
    return [rule for rule in rules if rule != BASELINE]


def _and_guarded(rules: Sequence[str], scale: str) -> list[Arm]:
    """The rules, and the recommended one under the guard."""
    del scale
    return [*map(preset, rules), setups.guarded()]


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
            figures.landscapes,
            seeds="first",
            note="Every run has a plane of its own: the two are not to be laid over each other.",
        ),
        View(
            "fig2",
            "Fully connected networks of 2, 4 and 6 layers",
            "Predictions on all weights fail as networks grow deeper; masked by PDT they speed training up.",
            _rows(*((f"FCNet, {d} layers", f"fcnet-{d}") for d in (2, 4, 6))),
            figures.depth,
            arms=_of_depth,
            note="A prediction, five epochs ahead where the rule does not say otherwise, ends every third epoch.",
        ),
        View(
            "fig4",
            "AlexNet with SGD: train loss, validation accuracy, accepted share",
            "PDT reaches the baseline's best train loss and best validation accuracy sooner.",
            ALEXNET,
            figures.curves,
            seeds="all",
        ),
        View(
            "table1",
            "Time to the baseline's best, by architecture",
            "PDT reaches the baseline's best train loss in 10 to 40% less time on every architecture.",
            ARCHITECTURES,
            figures.table,
            seeds="all",
        ),
        View(
            "table2",
            "Seven optimizers",
            "PDT consistently reduces the time to the baseline's best loss across these optimizers.",
            _optimizer_rows,
            figures.table,
            seeds="all",
        ),
        View(
            "table3",
            "SimSiam",
            "PDT's advantages generalize to self-supervised learning.",
            _rows(("SimSiam", "simsiam")),
            figures.curves,
            note="Accuracy is that of a linear probe of the backbone's features, a ridge regression.",
        ),
        View(
            "fig5",
            "A random mask of the same ratio",
            "Randomly masked predictions quite frequently end in gradient explosions; PDT's mask prevents them.",
            _rows(("AlexNet, lr 0.01", "alexnet-b256-0.01")),
            figures.random_masks,
            arms=_random,
        ),
        View(
            "fig6",
            "Switching between prediction and SGD on the validation loss",
            "Switching on the validation loss leads to a surge in loss from which the model does not recover.",
            _rows(("AlexNet, lr 0.01", "alexnet-b256-0.01")),
            figures.switched,
            arms=lambda rules, scale: [preset(BASELINE), setups.switching()],
            note="The paper states no settings: those of Fig. 5. Predictions are the released rule's, on all weights.",
        ),
        View(
            "fig7",
            "The toy problem: three variables sped up",
            "Three of six variables sped up threefold reach the threshold in 25 steps instead of 53.",
            _rows(),
            figures.toy_view,
        ),
        View(
            "fig8",
            "The toy problem: PDT",
            "PDT reaches the threshold in 27 steps instead of 53.",
            _rows(),
            figures.toy_view,
            note="With modes projected, fitted to the newest weights, start 6, and Eqs. 7 and 8: see `experiments/toy.py`.",
        ),
        View(
            "fig9",
            "Loss against epochs and against operations",
            "PDT needs 24% fewer operations to the baseline's best train loss, its own included.",
            ALEXNET,
            figures.operations,
            seeds="first",
            note="Operations are XLA's count of the program as written, where an addition and a multiplication are two.",
        ),
        View(
            "fig10",
            "Training curves by architecture",
            "PDT reaches the baseline's best train loss sooner, and its accepted share falls as training goes on.",
            ARCHITECTURES,
            figures.curves,
            seeds="all",
        ),
        View(
            "fig11",
            "Accepted share by layer and by its type",
            "Convolutions accept more than dense layers throughout, and shares fall in the end.",
            ALEXNET,
            figures.shares,
            seeds="first",
        ),
        View(
            "fig12",
            "Where the mask accepts",
            "Accepted weights are not spread evenly: some layers show clusters.",
            ALEXNET,
            figures.masks,
            seeds="first",
            note="At the first jump after a third of the epochs; epoch 20 of 60 in the paper.",
        ),
        View(
            "fig13",
            "Batches of one class each: curves",
            "PDT keeps its advantage where batches are not i.i.d.",
            _rows(("i.i.d.", "alexnet-iid"), ("non-i.i.d.", "alexnet-classes")),
            functools.partial(figures.curves, fields=("train_loss", "validation_accuracy")),
            seeds="all",
        ),
        View(
            "table4",
            "Batches of one class each",
            "PDT keeps its advantage where batches are not i.i.d.",
            _rows(("i.i.d.", "alexnet-iid"), ("non-i.i.d.", "alexnet-classes")),
            figures.table,
            seeds="all",
            note=PAPER["table4"]["note"],
        ),
        View(
            "fig14",
            "Horizon, interval, start and window",
            "Longer horizons speed training up until, at nine or so, errors grow; the others matter less.",
            ALEXNET,
            figures.hyperparameters,
            arms=_one_changed,
            note="One setting of the released rule at a time; the paper states no learning rate: that of Fig. 4.",
        ),
        View(
            "table5",
            "Batch sizes and learning rates",
            "At lower learning rates PDT consistently beats SGD; at 0.1 its advantage is less pronounced.",
            functools.partial(_sweep_rows, table="table5"),
            figures.table,
            note=PAPER["table5"]["note"],
        ),
        View(
            "table6",
            "Learning rates under a cosine schedule",
            "With the schedule PDT improves at all learning rates.",
            functools.partial(_sweep_rows, table="table6"),
            figures.table,
            arms=_and_guarded,
            seeds="all",
            note="Besides the rules, the recommended one with `guard=rollback()`, which takes failed jumps back.",
        ),
        View(
            "table7",
            "SGD, momentum and Adam",
            FASTER,
            functools.partial(_optimizer_rows, names=("SGD", "Momentum", "Adam")),
            figures.table,
            seeds="all",
        ),
    )
}
