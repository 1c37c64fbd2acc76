"""What the paper's experiments train, at three scales. Only data.

`paper` is the paper's own settings. `small` is for two CPU cores: Fashion-MNIST, narrow
networks, fewer epochs, batches of an eighth, learning rates to suit. `smoke` only shows that
all of it runs: digits, seven epochs, tiny networks, a corner of each grid.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pdt_optax
from experiments.training import rules
from experiments.training.arms import BASELINE, Arm, Predictive, preset
from experiments.training.trainer import Config
from experiments.training.workloads import ImageNet, Resized, Siamese, Workload

SEEDS = (0, 100, 200, 300, 400)
RULES = ("baseline", "paper", "released", "recommended")
# For figures of the mask: `recommended` takes or leaves all weights of an array alike.
_MASKS = dict.fromkeys(("fig5", "fig11", "fig12"), ("baseline", "paper", "released", "drift"))


def _changed(name: str, how: str, **changes: Any) -> Arm:
    """A preset with some of its settings changed."""
    return Predictive(f"{name}-{how}", tuple({**pdt_optax.presets.named(name), **changes}.items()))


_HELD = rules.held_dmd(**dataclasses.asdict(pdt_optax.presets.paper["dynamics"]))
_CURRENT = dataclasses.replace(pdt_optax.presets.paper["dynamics"], fit="current")

# What Tables 2, 4 and 6 show besides the presets. The last four have an acceleration scheduler, which the paper names
# and does not define.
VARIANTS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        _changed("recommended", "guarded", guard=pdt_optax.rollback()),
        _changed("paper", "guarded", guard=pdt_optax.rollback()),
        _changed("paper", "current", dynamics=_CURRENT),
        _changed("paper", "held", dynamics=_HELD),
        _changed("paper", "scheduled", schedule=pdt_optax.released_schedule()),
        _changed("paper", "adaptive", schedule=pdt_optax.adaptive()),
        _changed("released", "scheduled", schedule=pdt_optax.released_schedule()),
        _changed("released", "adaptive", schedule=pdt_optax.adaptive()),
    )
}


def rule(name: str) -> Arm:
    """The preset or variant of this name, or the baseline.

    Raises:
      ValueError: if there is none.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if name != BASELINE and name not in pdt_optax.presets.names():
        known = ", ".join([*pdt_optax.presets.names(), *VARIANTS])
        raise ValueError(f"There is no rule {name!r}. The rules are {known}.")
    return preset(name)


_TABLES = ("table2", "table4", "table6")  # in which everything is compared
_OF_PAPER = tuple(name for name in VARIANTS if name.startswith("paper-"))
EVERYTHING = (*RULES, "drift", *VARIANTS)


class Network(NamedTuple):
    """A network at a scale.

    Attributes:
      model: its name in `workloads.MODELS`.
      image_size: what it takes.
      size: its settings.
      seconds: of one run on one core (two busy), compilation and evaluation included; at
        the paper's scale, of the paper's baseline (Table 1).
      epochs, rate: in place of the scale's epochs, and of its factor of the learning rates.
    """

    model: str
    image_size: int
    size: Mapping[str, Any]
    seconds: float
    epochs: int | None = None
    rate: float | None = None


class Scale(NamedTuple):
    """How large everything is.

    Attributes:
      data, examples, validation_examples: a data set and how much of it.
      epochs: of all networks that do not say otherwise.
      batch: the paper's batch sizes are multiplied by it.
      rates: the paper's learning rates are, by optimizer; 1 where none is given.
      networks: by the paper's names.
      seeds: of Tables 1, 2, 4 and 6, and of all else.
      rules, rules_of: shown unless others are asked for, and where a view shows others.
      batches: of Table 5, and the epochs of each; Table 4 trains as long at its batch size.
      learning_rates: of SGD in Tables 5 and 6, and what is taken for each.
      variants: Fig. 14's settings.
      reduced: what is smaller than in the paper, and why, in a sentence.
    """

    data: str
    examples: int
    validation_examples: int
    epochs: int
    batch: float
    rates: Mapping[str, float]
    networks: Mapping[str, Network]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    rules: tuple[str, ...]
    rules_of: Mapping[str, tuple[str, ...]]
    batches: Mapping[int, int]
    learning_rates: Mapping[float, float]
    variants: Mapping[str, tuple[int, ...]]
    reduced: str


_VARIANTS = {
    "horizon": (1, 3, 5, 7, 9, 11),
    "interval": (1, 2, 3, 5),
    "start": (5, 10, 15, 20),
    "window": (3, 5, 8),
}


# The paper gives the batch of 600 over three devices, momentum, and two learning rates (ViT-Huge's is ViT-Base's
# here). What it is silent about is taken from common practice: 90 epochs, 5% of them a warm-up before the cosine,
# weight decay 1e-4 of all but vectors, labels smoothed by 0.1, random-resized crops mirrored at random, bfloat16
# for all but weights and logits. ViT-Huge recomputes its layers; with --mesh fsdp=3 each device has a third of it.
IMAGENET = {"schedule": "warmup_cosine", "optimizer": "decayed_momentum", "smoothing": 0.1}
_BF16 = {"dtype": "bfloat16"}


def _tiny_siamese(width: int, projection: int) -> dict[str, Any]:
    return {"backbone": "mini", "width": width, "projection": projection, "bottleneck": projection // 4}


SCALES: Mapping[str, Scale] = {
    "smoke": Scale(
        data="digits",
        examples=256,
        validation_examples=100,
        epochs=7,
        batch=1 / 8,
        rates={"sgd": 4, "momentum": 10},
        networks={
            "AlexNet": Network("alexnet", 63, {"width": 1 / 64}, seconds=5),
            "FCNet-2": Network("fcnet", 8, {"depth": 2, "pixels": 192, "width": 1 / 8}, seconds=3),
            "FCNet-4": Network("fcnet", 8, {"depth": 4, "pixels": 192, "width": 1 / 8}, seconds=3),
            "FCNet-6": Network("fcnet", 8, {"depth": 6, "pixels": 192, "width": 1 / 8}, seconds=3),
            "FCN": Network("fcn", 32, {"width": 1 / 32}, seconds=6),
            "ResNet-50": Network("resnet_mini", 32, {"stages": (1, 1), "width": 4}, seconds=7),
            "ViT-Base": Network("vit_mini", 32, {"depth": 1, "features": 12}, seconds=5),
            "ViT-Huge": Network("vit_mini", 32, {"depth": 2, "features": 12}, seconds=6),
            "SimSiam": Network("simsiam", 32, {**_tiny_siamese(4, 32), "stages": (1, 1)}, seconds=12),
        },
        seeds=((0,), (0,)),
        rules=("baseline", "released"),
        rules_of={"table6": ("baseline", "released", *VARIANTS)},  # each is tried once
        batches={256: 7, 512: 7},
        learning_rates={0.01: 0.04, 0.1: 0.4},
        variants={"horizon": (3, 5), "interval": (1, 2), "start": (5, 6), "window": (3, 5)},
        reduced="256 digits, 7 epochs and the narrowest networks: only shows that everything runs.",
    ),
    "small": Scale(
        data="fashion_mnist",
        examples=3_000,
        validation_examples=1_000,
        epochs=25,
        batch=1 / 8,
        rates={"sgd": 2, "momentum": 10, "adam": 2, "adamw": 10, "rmsprop": 3, "lamb": 4, "shampoo": 5},
        networks={
            "AlexNet": Network("alexnet", 64, {"width": 1 / 8}, seconds=25),
            # Roots of matrices take longer than all else; those of twice the width would take minutes.
            "AlexNet, Shampoo": Network("alexnet", 64, {"width": 1 / 16}, seconds=28, epochs=14),
            "FCNet-2": Network("fcnet", 32, {"depth": 2, "pixels": 3072, "width": 1 / 2}, seconds=10),
            "FCNet-4": Network("fcnet", 32, {"depth": 4, "pixels": 3072, "width": 1 / 2}, seconds=10),
            "FCNet-6": Network("fcnet", 32, {"depth": 6, "pixels": 3072, "width": 1 / 2}, seconds=10),
            "FCN": Network("fcn", 32, {"width": 1 / 8}, seconds=25),
            "ResNet-50": Network("resnet_mini", 32, {"width": 8}, seconds=28, epochs=20, rate=1),
            "ViT-Base": Network("vit_mini", 32, {"depth": 2}, seconds=28),
            "ViT-Huge": Network("vit_mini", 32, {"depth": 4}, seconds=30, epochs=16),
            "SimSiam": Network(
                "simsiam", 32, {**_tiny_siamese(8, 128), "stages": (1, 1, 1)}, seconds=28, epochs=14, rate=1
            ),
        },
        seeds=(SEEDS, SEEDS[:3]),
        rules=RULES,
        # Table 5: the rule that the paper's numbers are of. Tables 2, 4 and 6: of `EVERYTHING`, what is recorded.
        rules_of={
            **_MASKS,
            **dict.fromkeys(_TABLES, (*RULES, *_OF_PAPER)),
            "table5": ("baseline", "released"),
            "table6": (*RULES, "recommended-guarded", *_OF_PAPER),
        },
        batches={32: 12, 64: 12, 128: 16, 256: 25, 512: 25},
        # Closer together, or the least would not train in so few steps.
        learning_rates={0.001: 0.01, 0.01: 0.03, 0.05: 0.06, 0.1: 0.1},
        variants=_VARIANTS,
        reduced="3,000 Fashion-MNIST images instead of CIFAR-10 and ImageNet, 25 epochs instead of 60, inputs of "
        "64 x 64 (AlexNet) or 32 x 32, networks narrower (AlexNet by 8) or small members of the same "
        "families, batches of an eighth of the paper's, and higher learning rates for the fewer steps: "
        "what one CPU core trains in half a minute a run. Fewer epochs where steps are slow or many: see setups.py.",
    ),
    "paper": Scale(
        data="cifar10",
        examples=50_000,
        validation_examples=10_000,
        epochs=60,
        batch=1,
        rates={},
        networks={
            "AlexNet": Network("alexnet", 128, {}, seconds=684),
            "FCNet-2": Network("fcnet", 128, {"depth": 2}, seconds=684),
            "FCNet-4": Network("fcnet", 128, {"depth": 4}, seconds=684),
            "FCNet-6": Network("fcnet", 128, {"depth": 6}, seconds=684),
            "FCN": Network("fcn", 128, {}, seconds=2174),
            # Of these three, see `IMAGENET`.
            "ResNet-50": Network("resnet50", 224, _BF16, seconds=110_064, epochs=90),
            "ViT-Base": Network("vit_base", 224, _BF16, seconds=259_241, epochs=90),
            "ViT-Huge": Network("vit_huge", 224, {**_BF16, "recompute": True}, seconds=725_565, epochs=90),
            "SimSiam": Network("simsiam", 32, {"backbone": "resnet18"}, seconds=9611, epochs=200),
        },
        seeds=(SEEDS, SEEDS),
        rules=RULES,
        rules_of={**_MASKS, **dict.fromkeys(_TABLES, EVERYTHING)},
        batches=dict.fromkeys((32, 64, 128, 256, 512), 60),
        learning_rates={rate: rate for rate in (0.001, 0.01, 0.05, 0.1)},
        variants=_VARIANTS,
        reduced="Nothing: the paper's own settings, where it states them.",
    ),
}


class Setup(NamedTuple):
    """What is trained, arms and seeds apart.

    Attributes:
      watch: for the first seed alone.
      by_part: the released code has a model for each part of each layer.
    """

    workload: Workload
    optimizer: str
    learning_rate: float
    schedule: str
    epochs: int
    seconds: float
    watch: tuple[str, ...] = ()
    by_part: bool = False

    def config(self, arm: Arm, seed: int) -> Config:
        """One run."""
        if self.by_part and isinstance(arm, Predictive) and arm == preset("released"):
            arm = rules.PartByPart(arm.name, arm.given)
        watch = self.watch if seed == SEEDS[0] else ()
        rate = self.learning_rate
        return Config(self.workload, arm, self.optimizer, rate, self.schedule, self.epochs, seed, watch)


def optimizers() -> dict[str, tuple[str, float]]:
    """Tables 2 and 7: by row, the optimizer's name and the paper's learning rate."""
    return {
        "SGD": ("sgd", 0.1),
        "Momentum": ("momentum", 0.001),
        "Adam": ("adam", 0.0005),
        "AdamW": ("adamw", 5e-5),
        "RMSprop": ("rmsprop", 0.0001),
        "Shampoo": ("shampoo", 0.001),
        "LAMB": ("lamb", 0.001),
    }


@functools.cache
def setups(scale: str) -> Mapping[str, Setup]:
    """All that is trained at a scale, by name; the rates and batch sizes in the names are the paper's."""
    size = SCALES[scale]

    def setup(
        network: str,
        optimizer: str,
        rate: float,
        batch: int,
        schedule: str = "cosine",
        watch: tuple[str, ...] = (),
        epochs: int | None = None,
        **changes: Any,
    ) -> Setup:
        n = size.networks[network]
        kind, data = Siamese if network == "SimSiam" else Resized, size.data
        examples = size.examples, size.validation_examples
        if size.data == "cifar10" and batch == 600:
            kind, data, examples = ImageNet, "imagenet2012", (1_281_167, 50_000)
            optimizer, schedule = IMAGENET["optimizer"], IMAGENET["schedule"]
            changes["smoothing"] = IMAGENET["smoothing"]
        workload = kind(
            workload=n.model,
            data=data,
            examples=examples[0],
            validation_examples=examples[1],
            batch_size=max(2, round(batch * size.batch)),
            size=tuple(n.size.items()),
            image_size=n.image_size,
            **changes,
        )
        swept = size.learning_rates if (network, optimizer) == ("AlexNet", "sgd") else {}
        rate = swept.get(rate) or float(f"{rate * (n.rate or size.rates.get(optimizer, 1)):.6g}")
        epochs = epochs or n.epochs or size.epochs
        return Setup(workload, optimizer, rate, schedule, epochs, n.seconds, watch)

    # Table 6 says 1e-3 for the least rate of SGD's schedule; 1e-3 is more than other optimizers start from.
    found = {
        f"alexnet-sgd-{rate:g}": setup("AlexNet", "sgd", rate, 256, "floored_cosine")
        for rate in dict.fromkeys((*size.learning_rates, 0.05, 0.1))
    }
    # Figs. 4, 9, 10b, 11 and 12 and Table 1's AlexNet.
    found["alexnet-sgd-0.05"] = found["alexnet-sgd-0.05"]._replace(watch=("shares", "mask", "flops"))
    for name, (optimizer, rate) in list(optimizers().items())[1:]:
        watch = ("landscape",) if name == "Adam" else ()
        network = f"AlexNet, {name}" if f"AlexNet, {name}" in size.networks else "AlexNet"
        found[f"alexnet-{optimizer}"] = setup(network, optimizer, rate, 256, watch=watch)
    grid = [(batch, rate) for batch in size.batches for rate in size.learning_rates]
    for batch, rate in dict.fromkeys([*grid, (256, 0.01)]):  # the latter is Figs. 5 and 6, too
        epochs = size.batches[batch]
        found[f"alexnet-b{batch}-{rate:g}"] = setup("AlexNet", "sgd", rate, batch, "constant", epochs=epochs)
    # One least rate for all rows of SGD, as in the released scripts, but where records have 0.
    cosine = "floored_cosine" if scale == "paper" else "cosine"
    for name, scheme in (("iid", "shuffled"), ("classes", "single_class")):
        found[f"alexnet-{name}"] = setup(
            "AlexNet", "sgd", 0.05, 128, cosine, epochs=size.batches.get(128), scheme=scheme
        )
    for depth in (2, 4, 6):
        found[f"fcnet-{depth}"] = setup(f"FCNet-{depth}", "sgd", 0.01, 256, "constant")
    # Fig. 10a's caption is not to be read: AlexNet's settings stand in.
    found["fcn"] = setup("FCN", "sgd", 0.05, 256, cosine)
    found["resnet50"] = setup("ResNet-50", "momentum", 0.1, 600)
    found["vit-base"] = setup("ViT-Base", "momentum", 0.003, 600)
    # The paper gives no settings of ViT-Huge: ViT-Base's.
    found["vit-huge"] = setup("ViT-Huge", "momentum", 0.003, 600)._replace(by_part=scale == "paper")
    found["simsiam"] = setup("SimSiam", "momentum", 0.03, 256)
    return found


# Arms of single views.


def non_selective(name: str) -> Arm:
    """Fig. 2: a preset's predictions on all weights."""
    settings = {**pdt_optax.presets.named(name), "accept": pdt_optax.everything()}
    return Predictive(f"{name}-unmasked", tuple(settings.items()))


def every_third(name: str) -> Arm:
    """Fig. 2: a prediction ends every third epoch."""
    arm = non_selective(name.removesuffix("-unmasked")) if name.endswith("-unmasked") else rule(name)
    if not isinstance(arm, Predictive):
        return arm
    assert not callable(arm.given)
    return Predictive(name, tuple({**dict(arm.given), "interval": 2}.items()))


def random_mask(name: str) -> Arm:
    """Fig. 5: a preset's predictions on weights drawn at random, as many in each leaf as it accepts."""
    settings = dict(pdt_optax.presets.named(name))
    settings["accept"] = pdt_optax.random_subset(like=settings["accept"])
    return Predictive(f"{name}-random", tuple(settings.items()))


def switching() -> Arm:
    """Fig. 6: all predictions, as long as the validation loss falls."""
    settings = {**pdt_optax.presets.released, "accept": pdt_optax.everything()}
    return rules.Validated("switching", tuple({**settings, "schedule": rules.while_falling()}.items()))


def variant(**changes: int) -> Arm:
    """Fig. 14: the released rule with one setting changed."""
    settings = {**pdt_optax.presets.released, **changes}
    settings["start"] = max(settings["start"], settings["window"])
    if settings == pdt_optax.presets.released:
        return preset("released")
    return Predictive("-".join(f"{name}-{value}" for name, value in changes.items()), tuple(settings.items()))
