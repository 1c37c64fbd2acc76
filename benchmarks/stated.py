"""What README.md and docs/ state of `benchmarks/results`: each figure by its name, as it stands in the text.

One function per record, nothing is timed. `docs/figures.py` writes the
figures into the pages.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import RESULTS
from experiments.views.report import markdown
from experiments.views.stated import Figures, listed

STEPS_OF_AN_EPOCH = 391  # 50,000 images in batches of 128


def figures(folder: Path = RESULTS) -> Figures:
    """All figures of a folder of results."""
    read = report.figures(folder)
    return {
        **{f"{name}.table": table for name, table in report.tables(read).items()},
        **_boundary(read["boundary"], read["step"]),
        "step.alexnet": f"{read['step']['alexnet-128']['ratio_wrapped']:.2f}",
        **_peers(read["peers"]["sizes"]["57M"]),
        **_huge(read["huge"]),
        **_gpu(*(_read(folder / gpu / "step") for gpu in ("h100", "h200"))),
        **_gpu_boundary(_read(folder / "h100" / "boundary")["trees"]["57M"]),
        **_scaling(_read(folder / "scaling")),
        **_kills(_read(folder / "kills")),
        **_processes(_read(folder / "processes")),
        **_mutants(_read(folder / "mutants")),
    }


def _read(name: Path) -> dict[str, Any]:
    return json.loads(name.with_suffix(".json").read_text())


def _boundary(boundary: dict[str, Any], step: dict[str, Any]) -> Figures:
    trees = boundary["trees"]
    sized = [tree for name, tree in trees.items() if not name.startswith("small")]
    ms = {name: tree["boundary"]["median_ms"] for name, tree in trees.items()}
    epoch_ms = STEPS_OF_AN_EPOCH * step["alexnet-128"]["unwrapped"]["median_ms"]
    return {
        "boundary.small": f"{ms['small']:.3g}",
        "boundary.small-in-one-leaf": f"{ms['small-in-one-leaf']:.3g}",
        "boundary.small-to-references": f"{trees['small']['boundary_drift_to_references']:.1f}",
        "boundary.ratios": listed([f"{tree['boundary_to_references']:.2f}" for tree in sized]),
        "boundary.gradual-ratios": listed(
            [f"{tree['boundary_gradual_to_references']:.2f}" for tree in sized]
        ),
        "boundary.gradual": f"{trees['57M']['boundary-gradual']['median_ms']:.0f}",
        "boundary.seconds": f"{ms['57M'] / 1e3:.2f}",
        "boundary.ms": f"{ms['57M']:.0f}",
        "boundary.epoch-seconds": f"{epoch_ms / 1e3:.0f}",
        "boundary.share": f"{ms['57M'] / epoch_ms:.2%}",
    }


def _peers(size: dict[str, Any]) -> Figures:
    return {"peers.released-steps": f"{size['released-steps']['times_pdt']:.0f}"}


def _huge(huge: dict[str, Any]) -> Figures:
    timed = list(zip(huge["boundary_s"], huge["predicted"], strict=True))
    plain, predictions = ([s for s, predicted in timed if predicted == kind] for kind in (False, True))
    return {
        "huge.plain": f"{min(plain):.2f} to {max(plain):.2f}",
        "huge.predictions": f"{min(predictions):.1f} to {max(predictions):.1f}",
        "huge.peak": f"{huge['peak_resident_gb']:.1f}",
        "huge.told": f"{huge['told_gb']:.1f}",
        "huge.compiling": f"{huge['first_boundary_with_compilation_s']:.0f}",
    }


def _gpu(h100: dict[str, Any], h200: dict[str, Any]) -> Figures:
    arrays, kept = h100["vit"]["arrays"], h200["command_buffers"]
    rows = (
        ("AdamW alone, one leaf of 10 M, waited for", "`end_epoch`", h100["adamw-10M"], "ratio"),
        (
            "small ViT, 16 steps handed over ahead",
            f"`end_epoch`, {arrays['wrapped']} arrays instead of {arrays['unwrapped']}",
            h100["vit"],
            "ratio_wrapped",
        ),
        (
            "the same",
            f"`end_epoch`, the snapshots taken out of the state: {arrays['detached']} arrays",
            h100["vit"],
            "ratio_detached",
        ),
        ("AlexNet, batch 128, 128 x 128, waited for", "`every`", h100["alexnet-128"], "ratio"),
        ("AlexNet, batch 128, 224 x 224, waited for", "`every`", h100["alexnet-224"], "ratio"),
        (
            f"AlexNet, batch 128, 128 x 128, {h200['queued']} steps ahead (H200)",
            "`end_epoch`",
            h200["alexnet-128"],
            "ratio_end_epoch",
        ),
        ("the same", "`every`", h200["alexnet-128"], "ratio"),
        ("the same, conditions stay on the GPU", "`every`", kept["alexnet-128"], "ratio"),
    )
    return {
        "gpu.steps": report.steps(rows),
        "gpu.arrays": str(arrays["wrapped"]),
        "gpu.flags": f'`XLA_FLAGS="{kept["XLA_FLAGS"]}"`',
    }


def _gpu_boundary(tree: dict[str, Any]) -> Figures:
    named = {
        "boundary": "whole",
        "boundary-bfloat16": "bfloat16",
        "boundary-dmd": "dmd",
        "reference-gram": "reference-gram",
        "reference-assembly": "reference-assembly",
        "lengths": "lengths",
        "assembly": "assembly",
        "algebra": "algebra",
    }
    return {
        **{f"gpu.boundary.{name}": f"{tree[of]['median_ms']:.2g}" for of, name in named.items()},
    }


def _scaling(record: dict[str, Any]) -> Figures:
    def sent(figures: dict[str, Any]) -> str:
        return " + ".join(map(str, figures["all_reduce_bytes"])) or "0"

    devices = {int(count): of for count, of in record["devices"].items()}
    split = {count: of["fsdp drift"] for count, of in devices.items()}
    return {
        "scaling.table": markdown(
            [
                ["devices", "all-reduced, bytes", "operations on a device", "memory traffic of a device, MB"],
                *(
                    [f"{count:,}", sent(of), f"{of['flops']:,.0f}", f"{of['bytes_accessed'] / 1e6:.1f}"]
                    for count, of in split.items()
                ),
            ]
        ),
        "scaling.weights": f"{record['weights_per_device']:,}",
        "scaling.bytes": f"{split[max(split)]['bytes_accessed'] / record['weights_per_device']:.0f}",
        "scaling.released": sent(devices[max(devices)]["fsdp released"]),
    }


def _kills(record: dict[str, Any]) -> Figures:
    return {
        "kills.killed": str(record["killed"]),
        "kills.survived": f"{record['survived']} times of {record['killed']}",
        "kills.half-written": str(record["killed_while_a_checkpoint_was_written"]),
    }


def _processes(record: dict[str, Any]) -> Figures:
    rows = [
        [
            name,
            f"{max(run['from_each_other'].values()):.2g}",
            *(f"{run['from_one_process'][of]:.1e}" for of in ("loss", "weights")),
        ]
        for name, run in record.items()
        if "processes" in name
    ]
    head = [
        "run",
        "processes apart from each other",
        "largest relative difference of a loss to one process",
        "of all weights",
    ]
    return {"processes.table": markdown([head, *rows])}


def _mutants(record: dict[str, Any]) -> Figures:
    modules = record["modules"]
    noticed = {name: m["by_tests"] + m["by_types"] for name, m in modules.items()}
    shares = {name: noticed[name] / m["mutants"] for name, m in modules.items()}
    tests, types, mutants = (
        sum(m[of] for m in modules.values()) for of in ("by_tests", "by_types", "mutants")
    )
    best_first = sorted(shares, key=lambda name: -shares[name])
    return {
        "mutants.noticed": f"[{tests + types:,} of {mutants:,}](../benchmarks/results/mutants.json), "
        f"{(tests + types) / mutants:.1%}",
        "mutants.by-tests": f"{tests:,} ({tests / mutants:.1%})",
        "mutants.by-types": str(types),
        "mutants.by-module": ", ".join(f"`{name}` {shares[name]:.0%}" for name in best_first),
        "mutants.read": str(mutants - tests - types),
        **{
            f"mutants.{reason}": str(sum(len(m["not_noticed"].get(reason, ())) for m in modules.values()))
            for reason in record["reasons"]
        },
    }
