"""What the benchmark trains: pairs of a workload and an optimizer, and arms. Only data."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pdt_optax
from experiments.training import rules
from experiments.training.arms import (
    BASELINE,
    AdEMAMix,
    Arm,
    Ema,
    Lawa,
    Lookahead,
    Predictive,
    PredictiveAround,
    Recipe,
    ScheduleFree,
    Shaped,
    Snoo,
    predictive,
    preset,
)
from experiments.training.workloads import Characters, Images, LongText, Reconstruction, Small

TUNING_SEEDS = (1, 2, 3)
REPORTED_SEEDS = (0, 100, 200, 300, 400)
SHARES = (0.6, 0.75, 1.33, 2.0)  # of the full schedule, that the baseline is trained on, too: see `metrics`


class Pair(NamedTuple):
    """A workload with an optimizer.

    Attributes:
      rates: the first grid of learning rates; tuning extends it in factors of 2.
      seconds: that a full run takes on one core of an AMD EPYC, evaluation included, for time estimates.
      epochs: the full schedule.
      schedule: of the learning rate, a name in `optimizers.SCHEDULES`.
    """

    workload: Small
    optimizer: str
    rates: tuple[float, ...]
    seconds: float
    epochs: int = 40
    schedule: str = "cosine"

    @property
    def name(self) -> str:
        return f"{self.workload.workload}-{self.optimizer}"


_fashion = functools.partial(Images, data="fashion_mnist", validation_examples=2_000)

MLP = _fashion(
    workload="mlp",
    examples=10_000,
    batch_size=128,
    size=(("pixels", 784), ("hidden", (256, 128))),
)
CNN = _fashion(
    workload="cnn",
    examples=16_000,
    steps=64,
    batch_size=64,
    size=(("image_size", 28), ("channels", (16, 32, 64))),
)
VIT = _fashion(
    workload="vit",
    examples=16_000,
    steps=64,
    batch_size=64,
    size=(("image_size", 28), ("patch", 7), ("features", 32), ("depth", 2), ("heads", 2)),
)
RESNET = _fashion(
    workload="resnet",
    examples=8_000,
    steps=32,
    batch_size=64,
    size=(("patch", 4), ("channels", (16, 32, 64))),
)
CHAR_LM = Characters(
    workload="char_lm",
    length=64,
    steps=32,
    examples=4_700,
    validation_examples=256,
    batch_size=16,
    size=(("features", 48), ("depth", 2), ("heads", 4)),
)
# On a text so long that the validation loss still falls at twice the schedule.
CHAR_GRU = LongText(
    workload="char_gru",
    length=64,
    steps=32,
    examples=60_000,
    validation_examples=256,
    batch_size=16,
    size=(("features", 96),),
)
AUTOENCODER = Reconstruction(
    workload="autoencoder",
    data="fashion_mnist",
    examples=16_000,
    validation_examples=2_000,
    steps=64,
    batch_size=64,
    size=(("pixels", 784), ("hidden", 256), ("code", 32)),
)

# Six chosen first, and three of another nature, chosen before any arm was trained on them:
# a recurrent net under clipping and warm-up, an optimizer that orthogonalizes, a squared error.
PAIRS = {
    pair.name: pair
    for pair in (
        Pair(MLP, "sgd", (0.04, 0.08, 0.16, 0.32), seconds=4),
        Pair(MLP, "lamb", (5e-3, 1e-2, 2e-2, 4e-2), seconds=5),
        Pair(CNN, "momentum", (0.0125, 0.025, 0.05, 0.1), seconds=9),
        Pair(RESNET, "adamw", (2e-3, 4e-3, 8e-3, 1.6e-2), seconds=8),
        Pair(CHAR_LM, "adamw", (2e-3, 4e-3, 8e-3, 1.6e-2), seconds=12),
        Pair(VIT, "adamw", (1e-3, 2e-3, 4e-3, 8e-3), seconds=12),
        Pair(CHAR_GRU, "clipped_adam", (4e-3, 8e-3, 1.6e-2, 3.2e-2), seconds=10, schedule="warmup_cosine"),
        Pair(CHAR_LM, "muon", (4e-3, 8e-3, 1.6e-2, 3.2e-2), seconds=20),
        Pair(AUTOENCODER, "adam", (1e-3, 2e-3, 4e-3, 8e-3), seconds=6),
    )
}


def _default(name: str, **settings: Any) -> Predictive:
    """The default with these settings changed."""
    return Predictive(name, tuple({**pdt_optax.presets.recommended, **settings}.items()))


DRIFT = pdt_optax.presets.drift
JUMPING = _default("slow-jump", deliver="jump")  # as beside an optimizer, in a `Predictor`
SIX = tuple(PAIRS)[:6]  # the pairs chosen first

# Controls, each against one explanation of a gain: that any longer step would do,
# that any weights would do, that any displacements of the past would do.
CONTROLS = (
    predictive("last-step", dynamics=pdt_optax.drift(), accept=pdt_optax.everything(), window=2),
    predictive("random-mask", accept=pdt_optax.random_subset(like=DRIFT["accept"])),
    rules.Shuffled("random-order", tuple(pdt_optax.presets.recommended.items())),
)

# What one could do instead: average, wrap the optimizer in another one, add slow
# momentum, or take another schedule. Each is trained at its own tuned rate.
PEERS = (
    Ema("ema"),
    Lookahead("lookahead"),
    ScheduleFree("schedule-free"),
    Snoo("snoo"),
    AdEMAMix("ademamix"),
    Shaped("linear", shape="linear"),
    Shaped("trapezoid", shape="trapezoid"),
)
FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the baseline's tuned rate: a peer's first grid
PRESETS = ("recommended", "drift", "released", "paper")
FINAL = (*(preset(name) for name in (BASELINE, *PRESETS)), JUMPING, *CONTROLS, *PEERS)
SHOWN = "vit-adamw"  # the pair of the README's picture
README_ARMS = (
    "recommended",
    "slow-jump",
    "drift",
    "released",
    "random-mask",
    "random-order",
    "linear",
    "trapezoid",
    "ema",
    "lookahead",
    "snoo",
    "ademamix",
    "schedule-free",
)


def _rate_aware(recipe: Recipe, **settings: Any) -> Mapping[str, Any]:
    """A drift that follows the run's learning rates."""
    dynamics = pdt_optax.drift(learning_rate=recipe.schedule, steps_per_epoch=recipe.steps_per_epoch)
    return {**DRIFT, "dynamics": dynamics, **settings}


def _stopping(recipe: Recipe, share: float, **settings: Any) -> Mapping[str, Any]:
    """No jump after a share of the schedule."""
    rule = rules.until(settings.pop("accept", DRIFT["accept"]), round(share * recipe.epochs))
    return {**DRIFT, "accept": rule, **settings}


AGREE, SHRINK = pdt_optax.agree(), pdt_optax.shrink()
RELEASED = tuple(pdt_optax.presets.released.items())

# One choice at a time around a drift of two epochs where signs agree: how far, how to
# accept, how far back, how often, which dynamics, when to stop, what else at a jump.
_try = functools.partial(predictive, dynamics=pdt_optax.drift(), window=5, start=None)
SCREEN = (
    *(preset(name) for name in (BASELINE, "paper", "released")),
    *(_try(f"agree-h{h}", accept=AGREE, horizon=h) for h in (1, 2, 3, 5)),
    *(_try(f"shrink-h{h}", accept=SHRINK, horizon=h) for h in (2, 3, 5)),
    *(_try(f"agree-h2-w{w}", accept=AGREE, horizon=2, window=w) for w in (3, 8)),
    *(_try(f"agree-h{h}-i{i}", accept=AGREE, horizon=h, interval=i) for h, i in ((3, 2), (4, 4))),
    _try("majority-h2", accept=rules.votes(3), horizon=2),
    _try("whole-window-h3", accept=rules.votes(4), horizon=3),
    *(_try(f"snr{t}-h3", accept=rules.signal_to_noise(t), horizon=3) for t in (1.0, 2.0)),
    _try("backtest-h3", accept=rules.backtest(1.0), horizon=3),
    *(
        Predictive(f"{name}-lr-h{h}", functools.partial(_rate_aware, accept=accept, horizon=h))
        for name, accept, h in (("agree", AGREE, 3), ("agree", AGREE, 5), ("shrink", SHRINK, 5))
    ),
    Predictive("agree-h2-stop", functools.partial(_stopping, share=0.9, accept=AGREE, horizon=2)),
    *(
        _try(f"dmd-{kind}-h5", dynamics=rules.difference_dmd(kind), accept=AGREE, horizon=5)
        for kind in ("plain", "total", "forward-backward", "disc")
    ),
    _try("hybrid-h2", dynamics=rules.hybrid(), accept=AGREE, horizon=2),
    rules.LeafByLeaf("released-by-leaf", RELEASED),
    rules.AtJump("agree-h2-reset", _try("", accept=AGREE, horizon=2).given, moments="reset"),
    rules.AtJump("agree-h2-advance", _try("", accept=AGREE, horizon=2).given, advance=1),
    _try("agree-adaptive", accept=AGREE, horizon=2, schedule=pdt_optax.adaptive()),
    _try("agree-h5-guard", accept=AGREE, horizon=5, guard=pdt_optax.rollback()),
    _try("all-h1", accept=pdt_optax.everything(), horizon=1),
    Ema("ema"),
    Lawa("lawa"),
    Lookahead("lookahead"),
    ScheduleFree("schedule-free"),
    *(ScheduleFree(f"schedule-free-x{factor:g}", rate=factor) for factor in (2.0, 4.0)),
)

# The default, and one part of it changed or left out at a time: how predictions are
# delivered, the gain, what makes the weights longer, the memory, the start, the rule.
ABLATION = (
    preset("recommended"),
    JUMPING,
    _default("slow-steady", dynamics=pdt_optax.slow_drift(most_gain=1.0)),
    _default("slow-outward", dynamics=pdt_optax.slow_drift(outward=True)),
    _default("slow-short", dynamics=pdt_optax.slow_drift(memory=1)),
    _default("slow-start-1", start=1),
    _default("slow-agree", accept=AGREE),
)

# The default around optimizers with a slow memory of their own, at their rates.
AROUND = tuple(
    PredictiveAround(f"{peer.name}-slow", peer, tuple(pdt_optax.presets.recommended.items()))
    for peer in PEERS
    if peer.name in ("schedule-free", "ademamix")
)

# A single jump: when, and how far.
JUMPS = {
    (start, horizon): _try(
        f"jump-{start}-h{horizon}", accept=AGREE, horizon=horizon, start=start, interval=99
    )
    for start in (8, 16, 24, 32)
    for horizon in (1, 2, 4, 8)
}

# A rule made to fail, alone and under the guard.
RUNAWAY = tuple(
    predictive(name, dynamics=pdt_optax.drift(), accept=pdt_optax.everything(), horizon=20, guard=guard)
    for name, guard in (
        ("runaway", None),
        ("runaway-guarded", pdt_optax.rollback()),
        ("runaway-loosely-guarded", pdt_optax.rollback(0.5)),
    )
)

# BatchNorm's statistics after a jump: kept, as everywhere else, or estimated anew.
STATISTICS = (
    preset("drift"),
    rules.Refreshed("drift-refreshed", tuple(DRIFT.items())),
)

# How the window is kept.
STORAGE = (
    Arm(BASELINE),
    preset("drift"),
    predictive("drift-bfloat16", snapshot_dtype="bfloat16"),
    predictive("drift-on-host", snapshot_device="host"),
)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (*FINAL, *SCREEN, *ABLATION, *AROUND, *RUNAWAY, *JUMPS.values(), *STATISTICS, *STORAGE)
}
