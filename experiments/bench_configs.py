"""What the benchmark trains: pairs of a workload and an optimizer, and arms. Only data."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pdt_optax
from experiments.arms import (
    BASELINE,
    Arm,
    Ema,
    Lawa,
    Lookahead,
    Predictive,
    Recipe,
    ScheduleFree,
    predictive,
    preset,
)
from experiments.workloads import Characters, Images, Small

TUNING_SEEDS = (1, 2, 3)
REPORTED_SEEDS = (0, 100, 200, 300, 400)
SHARES = (0.4, 0.5, 0.6, 0.75)  # of the full schedule, for the equal-quality budget


class Pair(NamedTuple):
    """A workload with an optimizer.

    Attributes:
      rates: the first grid of learning rates; tuning extends it in factors of 2.
      seconds: that a full run takes on one core of an AMD EPYC, evaluation included, for time estimates.
      epochs: the full schedule.
    """

    workload: Small
    optimizer: str
    rates: tuple[float, ...]
    seconds: float
    epochs: int = 40

    @property
    def name(self) -> str:
        return f"{self.workload.workload}-{self.optimizer}"


MLP = Images(
    workload="mlp",
    data="fashion_mnist",
    examples=10_000,
    validation_examples=2_000,
    batch_size=128,
    size=(("pixels", 784), ("hidden", (256, 128))),
)
CNN = Images(
    workload="cnn",
    data="fashion_mnist",
    examples=4_000,
    validation_examples=2_000,
    batch_size=64,
    size=(("image_size", 28), ("channels", (16, 32, 64))),
)
VIT = Images(
    workload="vit",
    data="fashion_mnist",
    examples=4_000,
    validation_examples=2_000,
    batch_size=64,
    size=(("image_size", 28), ("patch", 7), ("features", 48), ("depth", 2), ("heads", 3)),
)
RESNET = Images(
    workload="resnet",
    data="fashion_mnist",
    examples=2_560,
    validation_examples=2_000,
    batch_size=64,
    size=(("patch", 4), ("channels", (16, 32, 64))),
)
CHAR_LM = Characters(
    workload="char_lm",
    length=64,
    steps=20,
    examples=4_700,
    validation_examples=256,
    batch_size=16,
    size=(("features", 64), ("depth", 2), ("heads", 4)),
)

PAIRS = {
    pair.name: pair
    for pair in (
        Pair(MLP, "sgd", (0.04, 0.08, 0.16, 0.32), seconds=4),
        Pair(CNN, "momentum", (0.0125, 0.025, 0.05, 0.1), seconds=9),
        Pair(VIT, "adamw", (1e-3, 2e-3, 4e-3, 8e-3), seconds=30),
        Pair(RESNET, "adamw", (1e-3, 2e-3, 4e-3, 8e-3), seconds=16),
        Pair(CHAR_LM, "adamw", (2e-3, 4e-3, 8e-3, 1.6e-2), seconds=18),
        Pair(MLP, "muon", (5e-3, 1e-2, 2e-2, 4e-2), seconds=28),
    )
}

RECOMMENDED = pdt_optax.presets.recommended

# Controls, each against one explanation of a gain: that any longer step would do,
# that any weights would do, that averaging would do, that another wrapper would.
CONTROLS = (
    predictive("last-step", dynamics=pdt_optax.drift(), accept=pdt_optax.everything(), window=2),
    predictive("random-mask", accept=pdt_optax.random_subset(like=RECOMMENDED["accept"])),
    Ema("ema"),
    Lawa("lawa"),
    Lookahead("lookahead"),
    ScheduleFree("schedule-free"),
)
FINAL = (*(preset(name) for name in (BASELINE, *pdt_optax.presets.names())), *CONTROLS)
SHORTENED = (BASELINE, "released", "recommended")  # also trained on the shorter schedules


def rate_aware(recipe: Recipe, **settings: Any) -> Mapping[str, Any]:
    """The recommended settings with a drift that follows the run's learning rates, over `settings`."""
    dynamics = pdt_optax.drift(learning_rate=recipe.schedule, steps_per_epoch=recipe.steps_per_epoch)
    return {**RECOMMENDED, "dynamics": dynamics, **settings}


RATE_AWARE = tuple(
    Predictive(f"{name}-lr-h{horizon}", functools.partial(rate_aware, accept=accept, horizon=horizon))
    for name, accept in (("agree", pdt_optax.agree()), ("shrink", pdt_optax.shrink()))
    for horizon in (3, 5, 8)
)

# One choice at a time: how to accept, how far ahead, how far back, how often.
SCREEN = (
    *(preset(name) for name in (BASELINE, *pdt_optax.presets.names())),
    *(
        predictive(f"{name}-h{horizon}", dynamics=pdt_optax.drift(), accept=accept, horizon=horizon)
        for name, accept in (("agree", pdt_optax.agree()), ("shrink", pdt_optax.shrink()))
        for horizon in (1, 2, 3, 5, 8)
    ),
    *(
        predictive(f"{name}-w{window}", dynamics=pdt_optax.drift(), accept=accept, window=window, start=8)
        for name, accept in (("agree", pdt_optax.agree()), ("shrink", pdt_optax.shrink()))
        for window in (3, 4, 6, 8)
    ),
    *(
        predictive(f"{name}-i{interval}", dynamics=pdt_optax.drift(), accept=accept, interval=interval)
        for name, accept in (("agree", pdt_optax.agree()), ("shrink", pdt_optax.shrink()))
        for interval in (2, 4)
    ),
    *RATE_AWARE,
    *CONTROLS[2:],
    *(ScheduleFree(f"schedule-free-x{rate:g}", rate=rate) for rate in (2.0, 4.0)),
)

ARMS: dict[str, Arm] = {arm.name: arm for arm in (*FINAL, *SCREEN)}
