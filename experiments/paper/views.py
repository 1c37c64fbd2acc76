"""The paper's tables and figures: what each says and what it needs."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pdt_optax
from experiments.paper import figures, setups
from experiments.paper.figures import PAPER
from experiments.paper.setups import SCALES, Setup
from experiments.training.arms import BASELINE, Arm, preset
from experiments.training.trainer import Config
from experiments.views.view import Asked, Need, View


class Row(NamedTuple):
    """A setup under the name that the paper's table gives it."""

    label: str
    setup: str


def _arms_of(rules: Sequence[str], scale: str) -> Sequence[Arm]:
    del scale
    return [setups.rule(rule) for rule in rules]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperView(View):
    """A table or figure of the paper.

    Attributes:
      title, claim: what it shows, and what the paper says.
      rows: by scale; none if nothing is trained.
      arms: from the rules that are shown and the scale; by default those rules themselves.
      seeds: all, fewer, or the first alone, as the scale has them.
    """

    rows: Callable[[str], Sequence[Row]]
    arms: Callable[[Sequence[str], str], Sequence[Arm]] = _arms_of
    seeds: str = "fewer"

    options = ("scale", "rule", "seeds", "dry-run", "time")

    def configs(
        self, scale: str, rules: Sequence[str] | None = None, seeds: Sequence[int] | None = None
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

    def needs(self, asked: Asked) -> list[Need]:
        return [
            Need(row.label, f"{asked.scale}/records/{row.setup}", setup.seconds, config)
            for row, setup, config in self.configs(asked.scale, asked.rules, asked.seeds)
        ]

    def folder(self, scale: str) -> str:
        return f"{scale}/{self.name}"

    def command(self, scale: str) -> str:
        return f"{super().command(scale)} --scale {scale}"


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


def _random(rules: Sequence[str], scale: str) -> list[Arm]:
    """The rules, and each of them at random."""
    del scale
    masked = [rule for rule in rules if rule in pdt_optax.presets.names()]
    return [*map(setups.rule, rules), *map(setups.random_mask, masked)]


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


VARIED = (
    "A longer name is a preset with one part changed: `-guarded`, under `guard=rollback()`, which takes failed jumps "
    "back; `-current`, fitted to the newest weights and starting from them; `-held`, no eigenvalue beyond the unit "
    "circle; `-scheduled` and `-adaptive`, with an acceleration schedule, `released_schedule()` and `adaptive()`."
)

FASTER = "PDT reaches the baseline's best train loss in less time, without losing accuracy."

VIEWS: dict[str, PaperView] = {
    view.name: view
    for view in (
        PaperView(
            name="fig1",
            title="Paths through weight space, Adam against PDT",
            claim="Against Adam, PDT moves faster over the loss surface.",
            rows=_rows(("AlexNet, Adam", "alexnet-adam")),
            render=figures.landscapes,
            seeds="first",
            note="In the first picture every run has a plane of its own. The second, of runs whose paths were kept, lays all "
            "of them over each other.",
        ),
        PaperView(
            name="fig2",
            title="Fully connected networks of 2, 4 and 6 layers",
            claim="Predictions on all weights fail as networks grow deeper; masked by PDT they speed training up.",
            rows=_rows(*((f"FCNet, {d} layers", f"fcnet-{d}") for d in (2, 4, 6))),
            render=figures.depth,
            arms=_of_depth,
            note="A prediction, five epochs ahead where the rule does not say otherwise, ends every third epoch. Its window "
            "is that of all experiments, five snapshots, so it holds the jump before.",
        ),
        PaperView(
            name="fig4",
            title="AlexNet with SGD: train loss, validation accuracy, accepted share",
            claim="PDT reaches the baseline's best train loss and best validation accuracy sooner.",
            rows=ALEXNET,
            render=figures.curves,
            seeds="all",
        ),
        PaperView(
            name="table1",
            title="Time to the baseline's best, by architecture",
            claim="PDT reaches the baseline's best train loss in 10 to 40% less time on every architecture.",
            rows=ARCHITECTURES,
            render=figures.table,
            seeds="all",
        ),
        PaperView(
            name="table2",
            title="Seven optimizers",
            claim="PDT consistently reduces the time to the baseline's best loss across these optimizers.",
            rows=_optimizer_rows,
            render=figures.table,
            seeds="all",
            note=VARIED,
        ),
        PaperView(
            name="table3",
            title="SimSiam",
            claim="PDT's advantages generalize to self-supervised learning.",
            rows=_rows(("SimSiam", "simsiam")),
            render=figures.curves,
            note="Accuracy is that of a linear probe of the backbone's features, a ridge regression.",
        ),
        PaperView(
            name="fig5",
            title="A random mask of the same ratio",
            claim="Randomly masked predictions quite frequently end in gradient explosions; PDT's mask prevents them.",
            rows=_rows(("AlexNet, lr 0.01", "alexnet-b256-0.01")),
            render=figures.random_masks,
            arms=_random,
        ),
        PaperView(
            name="fig6",
            title="Switching between prediction and SGD on the validation loss",
            claim="Switching on the validation loss leads to a surge in loss from which the model does not recover.",
            rows=_rows(("AlexNet, lr 0.01", "alexnet-b256-0.01")),
            render=figures.switched,
            arms=lambda rules, scale: [preset(BASELINE), setups.switching()],
            note="The paper states no settings: those of Fig. 5. Predictions are the released rule's, on all weights.",
        ),
        PaperView(
            name="fig7",
            title="The toy problem: three variables sped up",
            claim="Three of six variables sped up threefold reach the threshold in 25 steps instead of 53.",
            rows=_rows(),
            render=figures.toy_view,
        ),
        PaperView(
            name="fig8",
            title="The toy problem: PDT",
            claim="PDT reaches the threshold in 27 steps instead of 53.",
            rows=_rows(),
            render=figures.toy_view,
            note="With modes projected, fitted to the newest weights, start 6, and Eqs. 7 and 8: see `experiments/toy.py`.",
        ),
        PaperView(
            name="fig9",
            title="Loss against epochs and against operations",
            claim="PDT needs 24% fewer operations to the baseline's best train loss, its own included.",
            rows=ALEXNET,
            render=figures.operations,
            seeds="first",
            note="Operations are XLA's count of the program as written, where an addition and a multiplication are two.",
        ),
        PaperView(
            name="fig10",
            title="Training curves by architecture",
            claim="PDT reaches the baseline's best train loss sooner, and its accepted share falls as training goes on.",
            rows=ARCHITECTURES,
            render=figures.curves,
            seeds="all",
        ),
        PaperView(
            name="fig11",
            title="Accepted share by layer and by its type",
            claim="Convolutions accept more than dense layers throughout, and shares fall in the end.",
            rows=ALEXNET,
            render=figures.shares,
            seeds="first",
            note="The share of a type is the plain mean over its layers, whatever their sizes; that of all weights is not.",
        ),
        PaperView(
            name="fig12",
            title="Where the mask accepts",
            claim="Accepted weights are not spread evenly: some layers show clusters.",
            rows=ALEXNET,
            render=figures.masks,
            seeds="first",
            note="At the first jump from a third of the epochs on: epoch 20 of 60, as in the paper.",
        ),
        PaperView(
            name="fig13",
            title="Batches of one class each: curves",
            claim="PDT keeps its advantage where batches are not i.i.d.",
            rows=_rows(("i.i.d.", "alexnet-iid"), ("non-i.i.d.", "alexnet-classes")),
            render=functools.partial(figures.curves, fields=("train_loss", "validation_accuracy")),
            seeds="all",
        ),
        PaperView(
            name="table4",
            title="Batches of one class each",
            claim="PDT keeps its advantage where batches are not i.i.d.",
            rows=_rows(("i.i.d.", "alexnet-iid"), ("non-i.i.d.", "alexnet-classes")),
            render=figures.table,
            seeds="all",
            note=f"{PAPER['table4']['note']} {VARIED}",
        ),
        PaperView(
            name="fig14",
            title="Horizon, interval, start and window",
            claim="Longer horizons speed training up until, at nine or so, errors grow; a window can be too small or too large.",
            rows=ALEXNET,
            render=figures.hyperparameters,
            arms=_one_changed,
            note="One setting of the released rule at a time; the paper states no learning rate: that of Fig. 4.",
        ),
        PaperView(
            name="table5",
            title="Batch sizes and learning rates",
            claim="At lower learning rates PDT consistently beats SGD; at 0.1 its advantage is less pronounced.",
            rows=functools.partial(_sweep_rows, table="table5"),
            render=figures.table,
            note=PAPER["table5"]["note"],
        ),
        PaperView(
            name="table6",
            title="Learning rates under a cosine schedule",
            claim="With the schedule PDT improves at all learning rates.",
            rows=functools.partial(_sweep_rows, table="table6"),
            render=figures.table,
            seeds="all",
            note=VARIED,
        ),
        PaperView(
            name="table7",
            title="SGD, momentum and Adam",
            claim=FASTER,
            rows=functools.partial(_optimizer_rows, names=("SGD", "Momentum", "Adam")),
            render=figures.table,
            seeds="all",
        ),
    )
}
