"""The paper's toy problem (Sec. 3, Appendix A.1): a rising tide lifts all boats.

Plain gradient descent on six variables, the same with three of them three times
faster, and PDT through its public wrapper, one step an epoch. Prints the steps
that each takes to a loss below 0.1 and draws the trajectories in the x-y plane
and the loss (Figs. 7 and 8).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import pdt_optax
from experiments import command

START = (2.0, 2.0, 1.0, 0.5, -0.5, 1.5)
LEARNING_RATE = 0.01
THRESHOLD = 0.1
FASTER = (3.0, 3.0, 3.0, 1.0, 1.0, 1.0)


def loss(p: jax.Array) -> jax.Array:
    """f(x, y, z, u, v, w) of Sec. 3."""
    x, y, z, u, v, w = p
    return x**2 + y**2 + jnp.sin(z) + u**2 - jnp.cos(v) + w**2 + x * y + y * jnp.sin(z) + u * v * w


def predictive() -> pdt_optax.PDT:
    """Gradient descent with PDT at the settings that reproduce the paper's 27 steps."""
    return pdt_optax.pdt(
        optax.sgd(LEARNING_RATE),
        dynamics=pdt_optax.dmd(rank=None, modes="projected", fit="current"),
        accept=pdt_optax.bounded_rule(),
        window=5,
        horizon=5,
        start=6,
        interval=1,
        own_motion=False,
        deliver="jump",
    )


class Descent(NamedTuple):
    """One descent: the points after each step, their losses, and which steps ended in a prediction."""

    points: np.ndarray
    losses: np.ndarray
    predicted: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.losses) - 1


def descend(tx: optax.GradientTransformation, speed: Sequence[float] = (1.0,) * 6) -> Descent:
    """Steps of `tx`, each variable's gradient times its `speed`, until the loss is below the threshold."""
    p: Any = jnp.array(START)
    state = tx.init(p)
    points, predicted = [p], [False]
    while loss(points[-1]) >= THRESHOLD and len(points) < 1000:
        updates, state = tx.update(jax.grad(loss)(p) * jnp.array(speed), state, p)
        p = optax.apply_updates(p, updates)
        jumped = False
        if isinstance(tx, pdt_optax.PDT):
            p, state, report = tx.end_epoch(p, state)
            jumped = bool(report.predicted)
        points.append(p)
        predicted.append(jumped)
    return Descent(np.array(points), np.array([loss(p) for p in points]), np.array(predicted))


def trajectory_picture(runs: dict[str, Descent], path: Path) -> None:
    """A panel for each trajectory, since they nearly coincide: over the loss in the x-y plane, with z, u, v, w where gradient descent ends."""
    figure = Figure(figsize=(4.6 * len(runs) + 1, 4.6), layout="constrained")
    axes = figure.subplots(1, len(runs), sharex=True, sharey=True, squeeze=False)[0]
    x, y = np.meshgrid(np.linspace(-0.5, 2.3, 200), np.linspace(-0.5, 2.3, 200))
    rest = runs["gradient descent"].points[-1, 2:]
    plane = jax.vmap(lambda x, y: loss(jnp.concatenate([jnp.stack([x, y]), rest])))
    heights = plane(jnp.asarray(x.ravel()), jnp.asarray(y.ravel())).reshape(x.shape)
    surface: Any = None
    for i, (axis, (name, run)) in enumerate(zip(axes, runs.items(), strict=True)):
        surface = axis.contourf(x, y, heights, 30, cmap="Greys")
        axis.plot(*run.points[:, :2].T, ".-", color=f"C{i}", lw=1, ms=6, label="steps")
        jumps = run.points[run.predicted]
        if len(jumps):
            axis.plot(*jumps[:, :2].T, "o", mfc="none", color=f"C{i}", ms=10, label="predicted")
        axis.set(xlabel="x", title=f"{name}, {run.steps} steps")
        axis.legend(loc="upper left")
    axes[0].set_ylabel("y")
    figure.colorbar(surface, ax=list(axes), label="loss")
    figure.savefig(path, dpi=120)


def loss_picture(runs: dict[str, Descent], path: Path) -> None:
    """Loss against steps."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, (name, run) in enumerate(runs.items()):
        axis.plot(run.losses, color=f"C{i}", label=f"{name}, {run.steps} steps")
        axis.plot(np.flatnonzero(run.predicted), run.losses[run.predicted], "o", mfc="none", color=f"C{i}")
    axis.axhline(THRESHOLD, color="0.3", ls="--", lw=1, label="threshold")
    axis.set(xlabel="step", ylabel="loss", title="Loss; circles mark predictions")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    p = command.Parser("experiments.toy", __doc__)
    p.add_argument("--out", type=command.output, default="runs/toy", help="folder for the pictures")
    args = p.parse_args(argv)
    runs = {
        "gradient descent": descend(optax.sgd(LEARNING_RATE)),
        "x, y, z three times faster": descend(optax.sgd(LEARNING_RATE), FASTER),
        "PDT": descend(predictive()),
    }
    for name, run in runs.items():
        print(f"{name:>28}: {run.steps} steps")
    args.out.mkdir(parents=True, exist_ok=True)
    trajectory_picture(runs, args.out / "trajectory.png")
    loss_picture(runs, args.out / "loss.png")
    print(f"Look at {args.out / 'trajectory.png'} and {args.out / 'loss.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
