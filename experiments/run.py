"""The paper's tables and figures: one command for each, at three scales.

Runs are trained once and shared by all views that show them; after Ctrl-C, or worse, the next
start goes on. What is recorded is drawn into OUT/SCALE/VIEW and onto one page, OUT/SCALE/index.html.
Without --out, what the checkout has recorded is not trained again, but drawn.

examples:
  python -m experiments.run --list --scale small
  python -m experiments.run table2 --scale small
  python -m experiments.run fig4 --rule released recommended --seeds 0 100
  python -m experiments.run all --scale smoke
  python -m experiments.run table1 --scale paper --dry-run
  python -m experiments.run fig4 --scale paper --time 20
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

import pdt_optax
from experiments import command
from experiments.paper import page, views
from experiments.paper.setups import SCALES
from experiments.paper.views import VIEWS, View
from experiments.training import checkpoints, devices, loggers, records, sweep, trainer
from experiments.training.arms import BASELINE, Predictive
from experiments.training.workloads import Resized, Siamese

OUT, COMMITTED = Path("runs"), Path(__file__).parent / "results"


def parser() -> command.Parser:
    """The command line."""
    p = command.Parser("experiments.run", __doc__)
    p.add_argument("views", nargs="*", metavar="VIEW", help=f"all, or of {', '.join(VIEWS)}")
    p.add_argument("--scale", choices=SCALES, default="small", help="how large")
    p.add_argument("--list", action="store_true", help="claim, command, cost and status of every view")
    p.add_argument("--seeds", type=command.seed, nargs="+", help="by default those of the scale")
    p.add_argument(
        "--rule",
        nargs="+",
        metavar="NAME",
        help=f"presets beside the baseline, of {', '.join(pdt_optax.presets.names())} (by default those of the scale)",
    )
    p.add_argument("--out", type=Path, default=OUT, help="folder for all results")
    p.add_argument("--fresh", action="store_true", help="train again what is already recorded")
    p.add_argument("--page", action="store_true", help="draw what is recorded, train nothing")
    p.add_argument("--dry-run", action="store_true", help="tell what the runs will take, train nothing")
    p.add_argument(
        "--devices", type=command.whole(1), default=3, help="of a dry run, which needs none of them"
    )
    p.add_argument(
        "--time",
        type=command.whole(1),
        metavar="STEPS",
        help="tell what a step, an epoch and a prediction take here, from epochs of so many steps on noise",
    )
    p.add_argument(
        "--tensorboard", type=command.output, metavar="DIR", help="write the runs' scalars there too"
    )
    sweep.add_arguments(p)
    checkpoints.add_arguments(p, every=10)
    devices.add_arguments(p)
    return p


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = parser().parse_args(argv)
    rules = _rules(args.rule)
    chosen = _views(args.views or (["all"] if args.list else []))
    if args.list:
        _list(chosen, args, rules)
        return 0
    if args.dry_run:
        _dry_run(chosen, args, rules)
        return 0
    if args.time:
        _time(chosen, args, rules)
        return 0
    command.output(args.out)
    spread = devices.start(args)
    console = Console(quiet=not devices.is_first())
    if not args.page:
        sweep.train(_plan(chosen, args, rules), sweep.how(args, spread), console, _log(args))
    if devices.is_first():
        _show(chosen, args, rules, console)
    return 0


def _rules(names: Sequence[str] | None) -> views.Rules:
    """The rules that were asked for, the baseline first whether or not it is named."""
    if names is None:
        return None
    for name in names:
        if name != BASELINE:
            pdt_optax.presets.named(name)
    return tuple(dict.fromkeys([BASELINE, *names]))


def _views(names: Sequence[str]) -> list[View]:
    if not names:
        raise ValueError(f"Name a view, or all: there are {', '.join(VIEWS)}.")
    for name in names:
        if name != "all" and name not in VIEWS:
            raise ValueError(f"There is no view {name!r}. There are all, {', '.join(VIEWS)}.")
    return list(VIEWS.values()) if "all" in names else [VIEWS[name] for name in dict.fromkeys(names)]


def _plan(chosen: Sequence[View], args: argparse.Namespace, rules: views.Rules) -> list[sweep.Planned]:
    """All runs of some views, each once."""
    return list(
        {
            config.key: sweep.Planned(folder, config, setup.seconds)
            for view in chosen
            for folder, _, setup, config in views.placed(view, args.scale, rules, args.seeds, *_results(args))
        }.values()
    )


def _results(args: argparse.Namespace) -> Sequence[Path]:
    """Where to look for records; the first is where new ones go."""
    return (OUT, COMMITTED) if args.out == OUT and not args.fresh else (args.out,)


def _command(view: View, scale: str) -> str:
    return f"python -m experiments.run {view.name} --scale {scale}"


def _list(chosen: Sequence[View], args: argparse.Namespace, rules: views.Rules) -> None:
    for view in chosen:
        plan = _plan([view], args, rules)
        print(f"{view.name:<9}{minutes(plan):5.0f} min  {_status(plan)}\n{'':9}{view.claim}")
        print(f"{'':9}{_command(view, args.scale)}")
    whole = _plan(chosen, args, rules)
    print(f"{'together':<9}{minutes(whole):5.0f} min  {_status(whole)}")
    print(
        "Minutes of training on two CPU cores; runs that views share count once in what they take together."
    )


def _one_of_each(
    chosen: Sequence[View], args: argparse.Namespace, rules: views.Rules
) -> Iterator[trainer.Config]:
    """Of every setup one run, under the first rule, and says which."""
    planned = _plan(chosen, args, rules)
    for folder in dict.fromkeys(p.folder for p in planned):
        configs = [p.config for p in planned if p.folder == folder]
        config = next((c for c in configs if isinstance(c.arm, Predictive)), configs[0])
        print(f"{folder.name}, {config.rule}, {config.epochs} epochs of {config.workload.epoch_steps} steps")
        yield config


def _time(chosen: Sequence[View], args: argparse.Namespace, rules: views.Rules) -> None:
    """What every setup takes here."""
    from experiments.training import timing  # which imports what only it needs

    spread = devices.start(args)
    for config in _one_of_each(chosen, args, rules):
        print(f"  {timing.time_steps(config, args.time, spread)}", flush=True)


def _dry_run(chosen: Sequence[View], args: argparse.Namespace, rules: views.Rules) -> None:
    """Model, batch, memory and step of every setup, told from shapes."""
    from experiments.data import imagenet
    from experiments.training import dry_run  # which import what only they need

    for config in _one_of_each(chosen, args, rules):
        workload, method = config.workload, config.arm.method(config.recipe)
        if isinstance(workload, Siamese) or method.predictor is None:
            print("  no dry run: it is for classifiers under PDT")
            continue
        assert isinstance(workload, Resized)
        count = args.devices if workload.data == imagenet.NAME else 1
        spec = imagenet.spec(workload.batch_size, workload.image_size)
        told = dry_run.dry_run(
            lambda rngs, w=workload: w.model(rngs), method.tx, method.predictor, spec, devices=count
        )
        print(textwrap.indent(str(told), "  "))


def minutes(plan: Sequence[sweep.Planned]) -> float:
    """About what a plan takes, two runs side by side."""
    return sum(p.seconds for p in plan) / 2 / 60


def _status(plan: Sequence[sweep.Planned]) -> str:
    done = sum(records.read(p.folder, p.config).complete for p in plan)
    return f"{done} of {len(plan)} runs recorded" if plan else "nothing to train"


def _log(args: argparse.Namespace) -> Callable[[sweep.Planned], None] | None:
    """What is done with each recorded run: its scalars go to TensorBoard, if asked for."""
    if args.tensorboard is None:
        return None
    loggers.writer()  # or a missing package would be found out after the first run

    def done(planned: sweep.Planned) -> None:
        run = records.read(planned.folder, planned.config)
        name = f"{planned.folder.name}/{records.path_of(planned.folder, planned.config).stem}"
        with loggers.tensorboard(args.tensorboard / name) as log:
            loggers.log_run(log, run)

    return done


def _show(chosen: Sequence[View], args: argparse.Namespace, rules: views.Rules, console: Console) -> None:
    """Draws what is recorded: some views, and the page of all."""
    folder = args.out / args.scale
    for view in chosen:
        finds = views.find(view, args.scale, rules, args.seeds, *_results(args))
        if view.rows(args.scale) and not finds:
            console.print(f"{view.name}: nothing is recorded yet.")
            continue
        plan = _plan([view], args, rules)
        command = _command(view, args.scale)
        reduced = SCALES[args.scale].reduced if plan else ""
        shown = page.write_view(view, finds, folder / view.name, command, _status(plan), reduced)
        console.print(f"[bold]{view.name}[/bold] {view.title}", highlight=False)
        for verdict in shown.verdicts:
            console.print(f"  {verdict}", highlight=False)
    page.write_index(folder, list(VIEWS), args.scale)
    console.print(f"Look at {folder / 'index.html'}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
