"""What the paper's tables and figures show, drawn from records."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax

from experiments import toy
from experiments.paper import pictures, setups
from experiments.paper.claims import failures, final, verdicts
from experiments.paper.setups import SCALES
from experiments.training import watch
from experiments.training.arms import BASELINE
from experiments.training.records import Run
from experiments.views import metrics, report
from experiments.views.metrics import diverged
from experiments.views.view import Finds, Found, Shown

PAPER: Mapping[str, Any] = json.loads((Path(__file__).parent / "paper.json").read_text())


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
        pairs = [(r, baselines[r.seed]) for r in runs if r.rule == line.rule and r.seed in baselines]
        failed = [diverged(*pair) for pair in pairs]
        cells[:3], cells[-1] = [label, "here", line.rule], f"{sum(failed)} of {len(failed)}"
        lines.append(tuple(cells))
    return lines


def comparison(name: str, finds: Finds) -> list[tuple[str, ...]]:
    """A table: for each row the paper's lines, then ours."""
    about = PAPER.get(name, {})
    given = PAPER.get(about.get("numbers"), about).get("rows", [])
    labels = list(dict.fromkeys([*finds, *(row["row"] for row in given)]))
    order = {row["row"]: i for i, row in reversed(list(enumerate(given)))}
    lines = [tuple(COLUMNS)]
    for label in sorted(labels, key=lambda label: order.get(label, math.inf)):
        if label in finds:
            lines += [_paper_line(row) for row in given if row["row"] == label]
            lines += _our_lines(label, finds[label].runs)
    return lines


def table(name: str, finds: Finds, folder: Path) -> Shown:
    """The comparison alone."""
    del folder
    return Shown({"": comparison(name, finds)}, {}, verdicts(finds))


def curves(name: str, finds: Finds, folder: Path, fields: Sequence[str] = ()) -> Shown:
    """Curves of every row, and their comparison."""
    drawn = {}
    for i, (label, found) in enumerate(finds.items()):
        file = f"{name}-{i + 1}.png" if len(finds) > 1 else f"{name}.png"
        shown = fields or ("train_loss", "validation_accuracy", "accepted_share")
        pictures.curves({rule: found.of(rule) for rule in found.rules}, shown, folder / file, label)
        drawn[file] = (
            f"{label}: means over seeds, bands from the least to the greatest, a cross where a seed diverges"
        )
    return Shown({"": comparison(name, finds)}, drawn, verdicts(finds))


# Figures with a claim of their own.


def depth(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 2: whether predictions on all weights fail where masked ones do not."""
    shown = curves(name, finds, folder, ("train_loss", "validation_accuracy"))
    said = [verdict for verdict in shown.verdicts if "-unmasked" not in verdict]
    for label, found in finds.items():
        for rule in found.rules:
            if rule.endswith("-unmasked"):
                failed, count = failures(found, rule)
                said.append(
                    f"{label}, {rule}: final train loss {final(found, rule):.3g}, the baseline's "
                    f"{final(found, BASELINE):.3g}; {failed} of {count} runs diverged"
                )
    return shown._replace(verdicts=said)


def random_masks(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 5: what a random mask of the same share does."""
    shown = curves(name, finds, folder, ("train_loss", "validation_accuracy", "accepted_share"))
    said = [verdict for verdict in shown.verdicts if "-random" not in verdict]
    for found in finds.values():
        for rule in found.rules:
            masked = rule.removesuffix("-random")
            if rule != masked and masked in found.rules:
                failed, count = failures(found, rule)
                worse = final(found, rule) > final(found, masked)
                kind = "holds" if failed == count else "holds in part" if failed else "does not hold"
                said.append(
                    f"a random mask ruins the run, {masked}: {kind} ({failed} of {count} diverged; its final train loss "
                    f"is {'higher' if worse else 'no higher'} than the rule's: {final(found, rule):.3g} against "
                    f"{final(found, masked):.3g})"
                )
    return shown._replace(verdicts=said)


def switched(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 6: whether switching on the validation loss ruins the run."""
    shown = curves(name, finds, folder, ("train_loss", "validation_loss"))
    said = []
    for found in finds.values():
        failed, count = failures(found, "switching")
        kind = "holds" if count and failed == count else "holds in part" if failed else "does not hold"
        said.append(f"switching on the validation loss ruins the run: {kind} ({failed} of {count} diverged)")
    return shown._replace(verdicts=said)


def toy_view(name: str, finds: Finds, folder: Path) -> Shown:
    """Figs. 7 and 8: computed here, in a second; nothing is random."""
    del finds
    runs = {
        "gradient descent": toy.descend(optax.sgd(toy.LEARNING_RATE)),
        "x, y, z three times faster": toy.descend(optax.sgd(toy.LEARNING_RATE), toy.FASTER),
        "PDT": toy.descend(toy.predictive()),
    }
    given = {row["row"]: row["steps"] for row in PAPER[name]["rows"]}
    runs = {name: run for name, run in runs.items() if name in given}
    toy.trajectory_picture(runs, folder / f"{name}.png")
    drawn = {f"{name}.png": "trajectories in the x-y plane over the loss"}
    if name == "fig8":
        toy.loss_picture(runs, folder / "fig8-loss.png")
        drawn["fig8-loss.png"] = "loss against steps"
    lines = [("", "steps here", "steps in the paper")]
    lines += [(name, str(runs[name].steps), str(steps)) for name, steps in given.items()]
    same = all(runs[name].steps == steps for name, steps in given.items())
    return Shown({"": lines}, drawn, ["holds: the same steps" if same else "does not hold"])


def operations(name: str, finds: Finds, folder: Path) -> Shown:
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
        counted = {rule: [run for run in found.of(rule) if "flops" in run.about] for rule in found.rules}
        (base,) = counted[BASELINE] or (None,)
        if base is None:
            continue
        own = _to_best(base, base)
        for rule, runs in counted.items():
            for run in runs:
                work, spent = _operations(run), _to_best(run, base)
                shown = f"{spent / 1e12:.4g} T" if math.isfinite(spent) else "never"
                saved = f"{100 * (1 - spent / own):.0f}%" if math.isfinite(spent) and rule != BASELINE else ""
                mean, accuracy = work[-1] / len(work), run.epochs[-1]["validation_accuracy"]
                lines.append((label, "here", rule, f"{mean / 1e12:.4g} T", shown, saved, f"{accuracy:.4f}"))
                if rule != BASELINE:
                    kind = "holds" if spent < own else "does not hold"
                    said.append(f"{rule}: {kind}; operations saved {saved or 'none, it never gets there'}")
        pictures.operations(
            {rule: (runs, _operations(runs[0])) for rule, runs in counted.items() if runs},
            folder / "fig9.png",
            label,
        )
        drawn["fig9.png"] = "train loss over epochs, and over all operations, those of PDT included; seed 0"
    return Shown({"": lines}, drawn, said)


def _operations(run: Run) -> np.ndarray:
    """(epochs,), of the steps and the predictions so far; an epoch's end without a prediction is a copy."""
    fields, flops = run.fields, run.about["flops"]
    steps = fields.get("steps") or fields["examples"] // fields["batch_size"]
    each = [steps * flops["step"] + e["predicted"] * flops["boundary"] for e in run.epochs]
    return np.cumsum(each)


def _to_best(run: Run, baseline: Run) -> float:
    """Operations to the baseline's best train loss."""
    epochs = metrics.to_best(run, baseline, "train_loss").epochs
    return float(_operations(run)[int(epochs) - 1]) if math.isfinite(epochs) else math.inf


def _is_convolution(leaf: str) -> bool:
    return "conv" in leaf


def shares(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 11: the accepted share by layer, and by its type."""
    said, drawn, tables = [], {}, {}
    for label, found in finds.items():
        for run in found.runs:
            jumps = [e for e in run.epochs if "shares" in e]
            if not jumps:
                continue
            kernels = [leaf for leaf in jumps[0]["shares"] if leaf.endswith("kernel")]
            file = f"fig11-{run.rule}.png"
            pictures.shares(run, kernels, _is_convolution, folder / file, f"{label}, {run.rule}")
            drawn[file] = f"{run.rule}, seed {run.seed}: accepted share of each layer's kernel at every jump"
            by_type = [
                [
                    np.mean([e["shares"][leaf] for leaf in kernels if _is_convolution(leaf) == kind])
                    for e in jumps
                ]
                for kind in (True, False)
            ]
            higher = int(np.sum(np.greater(by_type[0], by_type[1])))
            overall = [e["accepted_share"] for e in jumps]
            half = max(1, len(overall) // 2)
            falls = np.mean(overall[-half:]) < np.mean(overall[:half])
            kind = "holds" if higher >= 0.9 * len(jumps) else "does not hold"
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


def masks(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 12: where in each layer the weights jumped."""
    said, drawn = [], {}
    for label, found in finds.items():
        for rule, arrays in found.arrays.items():
            if "mask" in arrays:
                clustered = _neighbours(arrays)
                kind = "holds" if max(clustered) > 0.1 else "does not hold"
                said.append(
                    f"{rule}: {kind} (neighbouring cells of a layer correlate by {min(clustered):.2f} to "
                    f"{max(clustered):.2f}; 0 if spread evenly)"
                )
                file = f"fig12-{rule}.png"
                pictures.mask(arrays, folder / file, f"{label}, {rule}, epoch {int(arrays['mask_epoch'])}")
                drawn[file] = (
                    f"{rule}: the share of weights that jumped, in the order of each kernel's weights"
                )
    return Shown({}, drawn, said)


def _neighbours(arrays: Mapping[str, np.ndarray]) -> list[float]:
    """For each kernel, how the shares of cells and of those after them correlate, where a cell holds several weights."""
    bands = [
        b.ravel() / 255
        for n, b in zip(arrays["mask_names"], arrays["mask"], strict=True)
        if n.endswith("kernel")
    ]
    several = [b for b in bands if ((b > 0) & (b < 1)).any()]
    return [float(np.corrcoef(b[:-1], b[1:])[0, 1]) for b in several] or [0.0]


def landscapes(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 1: each run's path in its own principal plane, and all paths in the baseline's."""
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
        paths = {rule: arrays for rule, arrays in seen.items() if "path_sketch" in arrays}
        if BASELINE in paths and len(paths) > 1:
            laid = {rule: watch.in_plane_of(paths[BASELINE], arrays) for rule, arrays in paths.items()}
            pictures.overlay(paths[BASELINE], laid, folder / "fig1-overlay.png", label)
            drawn["fig1-overlay.png"] = (
                f"all paths in the baseline's plane, to about a {round(watch.SKETCH**0.5)}th of their lengths"
            )
        said = verdicts({label: found._replace(runs=[r for r in found.runs if r.rule in seen])})
    return Shown({"": comparison("", finds)} if finds else {}, drawn, said)


def hyperparameters(name: str, finds: Finds, folder: Path) -> Shown:
    """Fig. 14: one setting at a time."""
    drawn, lines = {}, [("setting", "value", *list(COLUMNS)[3:])]
    for label, found in finds.items():
        panels: dict[str, dict[int, list[Run]]] = {}
        for setting, values in _variants(found).items():
            for value in values:
                arm = setups.variant(**{setting: value}).name
                panels.setdefault(setting, {})[value] = found.of(arm)
                ours = [line for line in _our_lines(label, found.runs) if line[2] == arm]
                lines += [(setting, str(value), *line[3:]) for line in ours]
        pictures.hyperparameters(panels, found.of(BASELINE), folder / "fig14.png", label)
        drawn["fig14.png"] = (
            f"{label}: train loss by one setting of the released rule at a time; means over seeds, a cross where a seed diverges"
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
