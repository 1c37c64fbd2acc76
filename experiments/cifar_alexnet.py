"""Train AlexNet with and without PDT and compare: the paper's main experiment.

Each rule starts from the same initial weights and sees the same batches as the
baseline of its seed. Writes one JSON line per epoch and run, and at the end a
table (table.md) and a picture (curves.png) into the --out folder. A run whose
records are complete is not trained again, one that broke off goes on from its
last complete epoch.

examples:
  the paper's setting, on a GPU with CIFAR-10 (the paper reports 684 s for its baseline on one A6000):
    python -m experiments.cifar_alexnet --download
  minutes on two CPU cores, real data, no download:
    python -m experiments.cifar_alexnet --data digits --width 0.25 --image-size 64 --batch-size 64 \\
        --optimizer adamw --learning-rate 3e-4 --epochs 40 --seeds 0
"""

import sys
from collections.abc import Sequence

from rich.console import Console

import pdt_optax
from experiments import command
from experiments.data import datasets
from experiments.training import checkpoints, devices, pool, records, sweep
from experiments.training.arms import BASELINE, preset
from experiments.training.optimizers import OPTIMIZERS, SCHEDULES
from experiments.training.trainer import Config
from experiments.training.workloads import AlexNetImages
from experiments.views import report


def parser() -> command.Parser:
    """The command line."""
    p = command.Parser("experiments.cifar_alexnet", __doc__)
    source = p.add_argument_group("data")
    source.add_argument(
        "--data", choices=datasets.NAMES, default="cifar10", help="data set; digits needs no download"
    )
    datasets.add_arguments(source)
    source.add_argument("--image-size", type=int, default=128, help="images are resized to this, >= 63")

    run = p.add_argument_group("training")
    run.add_argument(
        "--width", type=float, default=1.0, help="scales AlexNet's features; 1 has 57 M parameters"
    )
    run.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="sgd",
        help="momentum is SGD with 0.9, clipped_adam is Adam with gradients clipped to a norm of 1",
    )
    run.add_argument("--learning-rate", "--lr", type=float, default=0.05, help="peak learning rate")
    run.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="cosine",
        help="learning rate over the run: floored_cosine ends at 1e-3, trapezoid falls only at the end, warmup_cosine "
        "rises over the first 5%%",
    )
    run.add_argument("--epochs", type=command.whole(1), default=60, help="epochs")
    run.add_argument("--batch-size", type=command.whole(1), default=256, help="examples per step")
    run.add_argument(
        "--seeds", type=command.seed, nargs="+", default=[0, 100, 200, 300, 400], help="one run each"
    )
    run.add_argument(
        "--rules",
        nargs="*",
        choices=pdt_optax.presets.names(),
        default=list(pdt_optax.presets.names()),
        help="presets to compare: recommended is the default of `pdt`, drift the former one, released the authors' "
        "code, paper their Algorithm 1; the baseline (the optimizer alone) always runs",
    )
    output = p.add_argument_group("output")
    output.add_argument(
        "--out", type=command.output, default="runs/cifar_alexnet", help="folder for the results"
    )
    output.add_argument("--fresh", action="store_true", help="train again what is already recorded")
    checkpoints.add_arguments(output, every=1)
    devices.add_arguments(p)
    return p


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = parser().parse_args(argv)
    spread = devices.start(args)
    saving = checkpoints.saving(args)
    saving = saving._replace(resume=saving.resume and not args.fresh)
    workload = AlexNetImages(
        data=args.data, image_size=args.image_size, width=args.width, batch_size=args.batch_size
    )
    configs = [
        Config(
            workload=workload,
            arm=preset(rule),
            optimizer=args.optimizer,
            learning_rate=args.learning_rate,
            schedule=args.schedule,
            epochs=args.epochs,
            seed=seed,
        )
        for seed in dict.fromkeys(args.seeds)  # seeds outermost: an interrupted run still has pairs
        for rule in dict.fromkeys([BASELINE, *args.rules])
    ]
    where = datasets.Where(args.data_dir, args.download)
    dataset = pool.load(workload, where)
    devices.check_batch(args.batch_size, spread)  # before anything is printed

    console = Console(quiet=not devices.is_first())
    console.print(
        f"{len(configs)} runs of {args.epochs} epochs, {dataset.train.examples:,} training and "
        f"{dataset.test.examples:,} validation images, on {spread}."
    )
    how = sweep.How(0, spread, saving, args.fresh, where)
    interrupted = False
    try:
        sweep.train([sweep.Planned(args.out, config, config.epochs) for config in configs], how, console)
    except KeyboardInterrupt:
        interrupted = True
        console.print("Interrupted: the epochs already run are kept, the next start goes on with the rest.")

    if not devices.is_first():
        return 130 if interrupted else 0
    runs = [run for run in (records.read(args.out, c) for c in configs) if run.epochs]
    if not runs:
        return 130
    (args.out / "table.md").write_text(report.markdown_table(runs))
    title = f"AlexNet x {args.width:g} on {args.data}, {args.optimizer}, learning rate {args.learning_rate:g}"
    report.picture(runs, args.out / "curves.png", title)
    console.print(report.terminal_table(runs))
    console.print("Look at:", style="bold")
    for name, what in (
        ("curves.png", "train loss, validation accuracy and accepted share over epochs"),
        ("table.md", "the table above"),
        ("*.jsonl", "one line per epoch of each run"),
    ):
        console.print(f"  {args.out / name}  [dim]{what}", soft_wrap=True, highlight=False)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
