"""What the docs say of speed is what `benchmarks/results` say."""

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import RESULTS

ROOT = Path(__file__).parent.parent
READ = report.figures(RESULTS)
# Line breaks are the editor's.
DOCS = " ".join((ROOT / "docs" / "speed.md").read_text().split())
README = " ".join((ROOT / "README.md").read_text().split())


def test_the_tables() -> None:
    tables = report.tables(READ)
    assert (RESULTS / "tables.md").read_text() == "\n\n".join(tables) + "\n"
    docs = (ROOT / "docs" / "speed.md").read_text()
    assert all(table in docs for table in tables)


def test_the_sentences() -> None:
    trees, huge = READ["boundary"]["trees"], READ["huge"]
    small, together = (trees[name]["boundary"]["median_ms"] for name in ("small", "small-in-one-leaf"))
    assert f"takes {small:.3g} ms against {together:.3g} for" in DOCS
    assert f"and {trees['small']['boundary_to_references']:.1f} times the two references" in DOCS

    runs = [
        json.loads((RESULTS / "earlier" / f"boundary-{i}.json").read_text())["trees"]["57M"] for i in (1, 2)
    ]
    lengths, boundaries = (
        [f"{run[name]:.2f}" for run in (*runs, trees["57M"])]
        for name in ("lengths_to_reference", "boundary_to_references")
    )
    assert "lengths took {}, {} and {} times their".format(*lengths) in DOCS
    assert "whole boundary {}, {} and {} times".format(*boundaries) in DOCS

    boundary = trees["57M"]["boundary"]["median_ms"] / 1e3
    epoch = 391 * READ["step"]["alexnet-128"]["unwrapped"]["median_ms"] / 1e3
    share = f"{boundary / 2 / epoch:.2%}"
    assert f"{epoch:.0f} s here; a boundary with a prediction, {1e3 * boundary:.0f} ms" in DOCS
    assert f"is {share} of it" in DOCS

    kinds = {True: [], False: []}
    for seconds, predicted in zip(huge["boundary_s"], huge["predicted"], strict=True):
        kinds[predicted].append(seconds)
    plain, predictions = kinds[False], kinds[True]
    assert f"{min(plain):.2f} to {max(plain):.2f} s without a prediction" in DOCS
    assert f"{min(predictions):.1f} to {max(predictions):.1f} s with one" in DOCS
    assert f"never held more than {huge['peak_resident_gb']:.1f} GB" in DOCS
    assert f"`memory` says {huge['told_gb']:.1f} GB" in DOCS
    assert f"that many leaves takes {huge['first_boundary_with_compilation_s']:.0f} s" in DOCS

    peers = READ["peers"]["sizes"]["57M"]
    assert (
        f"takes {boundary:.2f} s on two CPU cores, {trees['57M']['boundary_to_references']:.1f} times"
        in README
    )
    assert f"{share} of an epoch" in README
    times = [f"{peers[name]['times_pdt']:.0f}" for name in ("released-steps", "pydmd")]
    assert "code take {} times as long as ours, PyDMD {} times".format(*times) in README
    assert f"weights take {max(predictions):.0f} s in {huge['peak_resident_gb']:.0f} GB" in README


def test_what_the_docs_say_of_gpus() -> None:
    h100, h200 = (
        {path.stem: json.loads(path.read_text()) for path in (RESULTS / gpu).iterdir()}
        for gpu in ("h100", "h200")
    )
    step, ahead = h100["step"], h200["step"]
    kept = ahead["command_buffers"]
    assert f'`XLA_FLAGS="{kept["XLA_FLAGS"]}"`' in DOCS
    rows: list[tuple[Any, str]] = [
        (step["adamw-10M"], "ratio"),
        (step["vit"], "ratio_wrapped"),
        (step["vit"], "ratio_detached"),
        (step["alexnet-128"], "ratio"),
        (step["alexnet-224"], "ratio"),
        (ahead["alexnet-128"], "ratio_end_epoch"),
        (ahead["alexnet-128"], "ratio"),
        (kept["alexnet-128"], "ratio"),
    ]
    table = re.findall(r"\| ([\d.]+) \| ([\d.]+) \|", DOCS[DOCS.index("## On a GPU") :])
    assert table[: len(rows)] == [
        (f"{of['unwrapped']['median_ms']:.4g}", f"{of[ratio]:.3f}") for of, ratio in rows
    ]
    tree = h100["boundary"]["trees"]["57M"]
    ms = {name: f"{of['median_ms']:.2g}" for name, of in tree.items() if isinstance(of, dict)}
    assert "takes {boundary} ms, {boundary-bfloat16} with".format(**ms) in DOCS
    assert "differences and {boundary-dmd} with `dmd`".format(**ms) in DOCS
    assert "references take {reference-gram} and {reference-assembly} ms".format(**ms) in DOCS
    assert "({lengths} for the lengths, {assembly} for the assembly)".format(**ms) in DOCS
    assert "algebra, {algebra} ms".format(**ms) in DOCS


def test_what_the_docs_say_of_a_whole_run_on_a_gpu() -> None:
    folder = ROOT / "experiments" / "results" / "h100"
    epochs = {
        path.name.split("-")[0]: [json.loads(line) for line in path.read_text().splitlines()][1:]
        for path in folder.glob("*.jsonl")
    }
    assert {rule: len(of) for rule, of in epochs.items()} == {
        "baseline": 60,
        "released": 60,
        "recommended": 60,
    }
    assert {f"{statistics.median(e['train_seconds'] for e in of):.3f}" for of in epochs.values()} == {"0.826"}
    recommended = epochs["recommended"]
    assert sum(e["predicted"] for e in recommended) == 28
    seconds = sum(e["pdt_seconds"] for e in recommended)
    share = seconds / sum(e["train_seconds"] + e["pdt_seconds"] for e in recommended)
    assert (
        f"takes 0.826 s with PDT and without, the 28 predictions and 60 snapshots {seconds:.2f} s of 50, {share:.1%}"
        in DOCS
    )
    boundary = json.loads((RESULTS / "h100" / "boundary.json").read_text())["trees"]["57M"]["boundary"]
    assert f"on an H100 {boundary['median_ms']:.0f} ms, and {share:.1%} of a whole run" in README
    best = min(e["train_loss"] for e in epochs["baseline"])
    sooner = {
        rule: 60 - next(e["epoch"] for e in of if e["train_loss"] <= best) for rule, of in epochs.items()
    }
    paper = " ".join((ROOT / "docs" / "paper.md").read_text().split())
    assert f"`recommended` takes {sooner['recommended']} epochs of 60 less" in paper
    assert f"`released` {sooner['released']} and" in paper
    assert f"in {60 - sooner['recommended']} epochs instead of 60 (one seed)" in README


def test_what_the_docs_say_of_scaling() -> None:
    docs = (ROOT / "docs" / "scaling.md").read_text()
    scaling = json.loads((RESULTS / "scaling.json").read_text())["devices"]
    for count, figures in scaling.items():
        of = figures["fsdp recommended"]
        sent = " + ".join(map(str, of["all_reduce_bytes"])) or "0"
        assert f"| {int(count):,} | {sent} | {of['flops']:,.0f} | {of['bytes_accessed'] / 1e6:.1f} |" in docs
        assert figures["replicated recommended"]["all_reduce_bytes"] == []
        assert {f["other_collectives"] for f in figures.values()} == {0}
        if int(count) <= 8:
            assert {f["displacement"] for f in figures.values()} == {0.0}
            assert {f["masks_agree"] for f in figures.values()} == {1.0}
        if int(count) > 1:
            sent = "all-reduces {} + {} bytes".format(*figures["fsdp released"]["all_reduce_bytes"])
            assert sent in docs


def test_what_the_docs_say_of_kills() -> None:
    docs = " ".join((ROOT / "docs" / "checkpoints.md").read_text().split())
    kills = json.loads((RESULTS / "kills.json").read_text())
    assert kills["killed"] == len(kills["kills"])
    assert f"bit for bit, {kills['survived']} times of {kills['killed']}, " in docs
    assert f", {kills['killed_while_a_checkpoint_was_written']} of them killed while a checkpoint" in docs


def test_what_the_docs_say_of_processes() -> None:
    docs = (ROOT / "docs" / "scaling.md").read_text()
    runs = {k: v for k, v in json.loads((RESULTS / "processes.json").read_text()).items() if "processes" in k}
    assert len(runs) == 4
    for name, run in runs.items():
        assert set(run["from_each_other"].values()) == {0.0}
        loss, weights = (run["from_one_process"][key] for key in ("loss", "weights"))
        assert f"| {name} | 0 | {loss:.1e} | {weights:.1e} |" in docs
        assert (run["jumps"], run["taken_back"], run["same_decisions"]) == (3, 1, True)


def test_what_reliability_says_of_mutants() -> None:
    record = json.loads((RESULTS / "mutants.json").read_text())
    said = (ROOT / "docs" / "reliability.md").read_text()
    read: Counter[str] = Counter()
    mutants = noticed = 0
    for name, m in record["modules"].items():
        read.update({reason: len(names) for reason, names in m["not_noticed"].items()})
        mutants, noticed = mutants + m["mutants"], noticed + m["noticed"]
        assert f"`{name}` {100 * m['noticed'] / m['mutants']:.0f}%" in said
    assert read.keys() == record["reasons"].keys()
    assert noticed + read.total() == mutants
    assert noticed >= 0.9 * mutants
    assert (
        f"[{noticed:,} of {mutants:,}](../benchmarks/results/mutants.json), {100 * noticed / mutants:.0f}%:"
        in said
    )
    assert f"The {mutants - noticed} others were read one by one" in said
    rows = re.findall(
        r"(?m)^\| (\d+) \| ", said[said.index("| not noticed |") : said.index("What was a gap")]
    )
    assert sorted(map(int, rows)) == sorted(read.values())
