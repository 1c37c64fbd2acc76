"""The figures of the benchmarks as tables, and as one picture of time against the number of weights.

Reads the JSON that the other commands wrote, times nothing. Without --out, and
without figures of your own, those of benchmarks/results are drawn, which are
those of docs/speed.md.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks import measure
from experiments import command
from experiments.views.report import markdown

PEERS = {
    "released-steps": "steps of the released code (NumPy)",
    "pydmd": "PyDMD",
    "literal-numpy": "literal SVD (NumPy)",
    "literal-jax": "literal SVD (jax)",
}
TIMES = {
    "reference-read": "reference: sum of three arrays",
    "reference-write": "reference: three arrays scaled, in place",
    "boundary": "**boundary**, the default",
    "boundary-gradual": "boundary, the default in parts",
    "reference-gram": "reference: sum of six arrays",
    "reference-assembly": "reference: weighted sum, in place",
    "lengths": "lengths of the columns (`drift`)",
    "gram": "Gram matrix (`dmd`)",
    "algebra": "algebra, `drift`",
    "algebra-dmd": "algebra, `dmd`",
    "assembly": "assembly",
    "snapshot": "snapshot",
    "boundary-drift": "boundary, `drift`",
    "boundary-bfloat16": "boundary, bfloat16 differences",
    "boundary-dmd": "boundary, `dmd`",
}
RATIOS = {
    "lengths_to_reference": "lengths / reference",
    "gram_to_reference": "Gram / reference",
    "assembly_to_reference": "assembly / reference",
    "boundary_to_references": "**boundary / its two references**",
    "boundary_gradual_to_references": "boundary in parts / the same two",
    "boundary_drift_to_references": "boundary with `drift` / both",
    "boundary_dmd_to_references": "boundary with `dmd` / both",
}
STORAGE = (
    "pair",
    "error of the displacement",
    "accepted, float32",
    "accepted, bfloat16",
    "accepted by only one",
)
# The commands whose figures are read, and the parts of them that are.
READ = {
    "boundary": ("machine", "trees"),
    "peers": ("sizes",),
    "step": ("vit", "vit-nnx", "vit-scan", "adamw-10M"),
    "storage": ("pairs",),
    "huge": ("parameters", "boundary_s", "predicted"),
}


def figures(folder: Path) -> dict[str, Any]:
    """What the other commands wrote to a folder."""
    return {name: command.read_json(folder / f"{name}.json", *keys) for name, keys in READ.items()}


def tables(read: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/speed.md by their record, in Markdown."""
    trees = {name: row for name, row in read["boundary"]["trees"].items() if not name.startswith("small")}
    sizes = read["peers"]["sizes"]

    def medians(rows: dict[str, Any], name: str) -> list[str]:
        return [f"{row[name]['median_ms']:.3g}" for row in rows.values()]

    boundary = markdown(
        [
            ["", *(f"{row['parameters']:,}" for row in trees.values())],
            *([label, *medians(trees, name)] for name, label in TIMES.items()),
            *([label, *(f"{row[name]:.2f}" for row in trees.values())] for name, label in RATIOS.items()),
        ]
    )
    peers = markdown(
        [
            ["", *(f"{row['parameters']:,}" for row in sizes.values())],
            ["pdt_optax, ms", *medians(sizes, "pdt")],
            *(
                [label, *(f"{row[n]['times_pdt']:.0f}x" for row in sizes.values())]
                for n, label in PEERS.items()
            ),
        ]
    )
    step = read["step"]
    arrays = step["vit"]["arrays"]
    taken = (
        ("AdamW alone, one leaf of 10 M", "wrapped", step["adamw-10M"], "ratio_wrapped"),
        ("small ViT, the bench's", "beside", step["vit"], "ratio_beside"),
        (
            "the same",
            f"wrapped, {arrays['wrapped']} arrays instead of {arrays['unwrapped']}",
            step["vit"],
            "ratio_wrapped",
        ),
        ("the same in a Flax nnx loop", "beside", step["vit-nnx"], "ratio_beside"),
        ("the same in a Flax nnx loop", "wrapped", step["vit-nnx"], "ratio_wrapped"),
        (
            f"a scan of {step['vit-scan']['epochs']} epochs of {step['vit-scan']['steps']} steps",
            "beside, boundaries included",
            step["vit-scan"],
            "ratio_beside",
        ),
        ("AlexNet, batch 128, 128 x 128", "wrapped", step["alexnet-128"], "ratio_wrapped"),
        ("the same", "`every`", step["alexnet-128"], "ratio_every"),
        ("AlexNet, batch 128, 224 x 224", "`every`", step["alexnet-224"], "ratio_every"),
    )
    storage = markdown(
        [
            STORAGE,
            *(
                [
                    f"`{name}`",
                    f"{row['displacement_error']:.2%}",
                    f"{row['accepted_share']:.1%}",
                    f"{row['accepted_share_bfloat16']:.1%}",
                    f"{row['accepted_by_one_only']:.3%}",
                ]
                for name, row in ((n, r["drift"]) for n, r in read["storage"]["pairs"].items())
            ),
        ]
    )
    return {"boundary": boundary, "peers": peers, "step": steps(taken), "storage": storage}


def steps(rows: Iterable[tuple[str, str, dict[str, Any], str]]) -> str:
    """Ordinary steps as a table. A row: what is trained, in which form, its times, the name of their ratio."""
    return markdown(
        [
            ["step", "form", "without PDT, ms", "with / without"],
            *(
                [label, form, f"{of['unwrapped']['median_ms']:.4g}", f"{of[ratio]:.3f}"]
                for label, form, of, ratio in rows
            ),
        ]
    )


def picture(read: dict[str, Any], path: Path) -> None:
    """Draws the time of the same prediction, made in several ways, against the number of weights."""
    sizes, huge = read["peers"]["sizes"], read["huge"]
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    ways = {"pdt": "pdt_optax", **PEERS}
    counts = [row["parameters"] for row in sizes.values()]
    for color, (name, label) in zip(("C0", "C3", "C1", "C4", "C5"), ways.items(), strict=True):
        seconds = [row[name]["median_ms"] / 1e3 for row in sizes.values()]
        axes.plot(counts, seconds, color=color, marker="o", linewidth=3 if name == "pdt" else 1.5)
        shift = {"released-steps": -6, "pydmd": 6}.get(name, 0)  # their lines end at one place
        axes.annotate(
            label, (counts[-1], seconds[-1]), (8, shift), textcoords="offset points", va="center", color=color
        )
    predictions = [s for s, p in zip(huge["boundary_s"], huge["predicted"], strict=True) if p]
    last = huge["parameters"], sum(predictions) / len(predictions)
    axes.plot(*last, "C0o", markersize=9, markerfacecolor="none")
    axes.annotate(
        "pdt_optax, the default\non ViT-Huge",
        last,
        (0, -10),
        textcoords="offset points",
        ha="right",
        va="top",
        color="C0",
    )
    times = [of["times_pdt"] for row in sizes.values() for of in (row[name] for name in PEERS)]
    machine = read["boundary"]["machine"]
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(7e5, 1.2e9),
        xlabel="weights",
        ylabel="seconds for one prediction",
        title=f"Other ways to the same prediction take {min(times):.0f} to {max(times):.0f} times as long\n"
        f"{machine['cores']} cores of an {machine['cpu']}, window of 5",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = measure.parser("report", __doc__).parse_args(argv)
    own = args.out != measure.OUT or any(args.out.glob("*.json"))
    read = figures(args.out if own else measure.RESULTS)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "tables.md").write_text("\n".join(tables(read).values()))
        picture(read, args.out / "boundary.png")
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise command.RefusedError(
            f"The figures in {args.out} must be those that the other benchmarks write. Got {e!r}."
        ) from None
    print(f"Look at {args.out / 'tables.md'} and {args.out / 'boundary.png'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
