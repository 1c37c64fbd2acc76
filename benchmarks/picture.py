"""The figures in `benchmarks/results` as one picture: time against the number of weights."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks import measure

PEERS = {
    "released-steps": "steps of the released code (NumPy)",
    "pydmd": "PyDMD",
    "literal-numpy": "literal SVD (NumPy)",
    "literal-jax": "literal SVD (jax)",
}
OURS = {
    "boundary": "pdt_optax, whole boundary",
    "boundary-bfloat16": "the same, bfloat16 differences",
    "boundary-dmd": "the same, dmd for the dynamics",
}
PASSES = {"lengths": "its pass for the lengths", "assembly": "its assembly pass", "snapshot": "its snapshot"}
REFERENCES = {"reference-gram": "sum of the six arrays", "reference-assembly": "weighted sum, in place"}


def _line(axes: Any, rows: dict[str, Any], name: str, label: str, **style: Any) -> None:
    points = [(row["parameters"], row[name]["median_ms"] / 1e3) for row in rows.values() if name in row]
    axes.plot(*zip(*points, strict=True), label=label, **style)


def main(argv: Sequence[str] | None = None) -> int:
    p = measure.parser("picture", __doc__)
    args = p.parse_args(argv)
    read = {
        name: json.loads((args.out / f"{name}.json").read_text()) for name in ("boundary", "peers", "huge")
    }
    trees = {name: row for name, row in read["boundary"]["trees"].items() if not name.startswith("small")}
    figure, axes = plt.subplots(figsize=(9.5, 5.5), layout="constrained")
    for color, (name, label) in zip(("C3", "C1", "C4", "C5"), PEERS.items(), strict=True):
        _line(axes, read["peers"]["sizes"], name, label, color=color, marker="s", markersize=4)
    for color, (name, label) in zip(("C0", "C9", "C2"), OURS.items(), strict=True):
        _line(axes, trees, name, label, color=color, marker="o", linewidth=2.2)
    for style, (name, label) in zip(("--", "-.", ":"), PASSES.items(), strict=True):
        _line(axes, trees, name, label, color="C0", linestyle=style, linewidth=1)
    for style, (name, label) in zip(("--", "-."), REFERENCES.items(), strict=True):
        _line(axes, trees, name, f"reference: {label}", color="0.6", linestyle=style, linewidth=1)
    huge = read["huge"]
    predictions = [s for s, p in zip(huge["boundary_s"], huge["predicted"], strict=True) if p]
    axes.plot(
        huge["parameters"], sum(predictions) / len(predictions), "C9o", markersize=9, markerfacecolor="none"
    )
    axes.annotate(
        "ViT-Huge", (huge["parameters"], predictions[-1]), (-12, 10), textcoords="offset points", ha="right"
    )
    machine = read["boundary"]["machine"]
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="weights",
        ylabel="seconds per prediction",
        title=f"One prediction with a window of 5, on {machine['cores']} cores of an {machine['cpu']}",
    )
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    path = args.out / "boundary.png"
    figure.savefig(path, dpi=120)
    print(f"Look at {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
