"""Draws the paper's tables and figures, and those at tuned learning rates. It trains what is not recorded yet.

Each table or figure is a view; without one, this command lists them. Views share their runs, and each run
is trained once. After Ctrl-C, or worse, the next start goes on. A view is drawn into OUT/SCALE/VIEW or
OUT/tuned/VIEW, and all of them onto one page, index.html. Without --out, runs that are committed in this
checkout (experiments/results) are drawn and not trained again; new runs go to runs/.

  all     all views of the paper
  tune    looks for the learning rates that the views at tuned rates take, and writes OUT/tuned/rates.json:
          of each optimizer alone (the baseline), and of the arms that have their own
  pack    moves the complete runs below --out into one file for each setup, a line for each run

scales of the paper's views:
  smoke   a few epochs of tiny networks: shows that everything runs, in a minute
  small   real data and the paper's networks scaled down, for two CPU cores (the committed results)
  paper   the paper's own sizes, for GPUs

rules (presets of pdt_optax), each compared with the baseline, the optimizer alone:
  recommended  the default of `pdt`: the mean of the optimizer's own motion, delivered in parts
  drift        the former default: the mean velocity of five snapshots, where signs agree
  released     the rule of the authors' released code
  paper        the paper's Algorithm 1, to the letter

examples:
  python -m experiments.run
  python -m experiments.run table2 --scale small
  python -m experiments.run fig4 --rule released drift recommended --seeds 0 100
  python -m experiments.run all --scale smoke
  python -m experiments.run table1 --scale paper --dry-run
  python -m experiments.run fig4 --scale paper --time 20
  python -m experiments.run tune --workloads mlp-sgd
  python -m experiments.run screen --workloads mlp cnn --arms baseline agree-h3 shrink-h5
  python -m experiments.run tuned --page
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

import pdt_optax
from experiments import command
from experiments.data import datasets
from experiments.paper import views as paper
from experiments.paper.claims import RULE_OF_JUDGEMENT
from experiments.paper.setups import SCALES, VARIANTS, rule
from experiments.training import checkpoints, devices, loggers, records, sweep, trainer
from experiments.training.arms import BASELINE, Predictive
from experiments.training.workloads import ImageNet, Images, Siamese
from experiments.tuned import setups
from experiments.tuned import views as tuned
from experiments.views import page
from experiments.views.view import Asked, View, find, plan

OUT, COMMITTED = Path("runs"), Path(__file__).parent / "results"
TUNED: dict[str, View] = {tuned.TUNE.name: tuned.TUNE, **tuned.VIEWS}
VIEWS: dict[str, View] = {**paper.VIEWS, **TUNED}
PACK = "pack"


def parser() -> command.Parser:
    """The command line."""
    p = command.Parser("experiments.run", __doc__)
    p.add_argument(
        "views",
        nargs="*",
        metavar="VIEW",
        help=f"of the paper: {', '.join(paper.VIEWS)}, or all; at tuned rates: {', '.join(TUNED)}; or {PACK}; "
        "none for the list",
    )
    p.add_argument(
        "--list",
        action="store_true",
        help="tell of every view its claim, its command, what it costs, and whose runs there are",
    )
    p.add_argument(
        "--scale", choices=SCALES, help="of the paper's views: how large, see above (default: small)"
    )
    p.add_argument(
        "--rule",
        nargs="+",
        metavar="NAME",
        help="of the paper's views: rules to show, of "
        f"{', '.join([*pdt_optax.presets.names(), *VARIANTS])}, see above (default: those of the scale); the baseline is "
        "always shown",
    )
    p.add_argument(
        "--workloads",
        nargs="+",
        metavar="NAME",
        help="at tuned rates: pairs of a workload and an optimizer, such as mlp-sgd; mlp alone means all pairs of "
        f"that workload. There are {', '.join(setups.PAIRS)} (default: those of the view)",
    )
    p.add_argument(
        "--arms",
        nargs="+",
        metavar="NAME",
        help="at tuned rates: ways to train, such as recommended or schedule-free; --list names those of each view "
        "(default: those of the view)",
    )
    p.add_argument("--seeds", type=command.seed, nargs="+", help="random seeds (default: those of the view)")
    p.add_argument("--out", type=Path, default=OUT, help="folder for results")
    p.add_argument("--fresh", action="store_true", help="train again what is already recorded")
    p.add_argument("--page", action="store_true", help="draw what is recorded, train nothing")
    p.add_argument(
        "--dry-run", action="store_true", help="tell what the paper's runs will take, train nothing"
    )
    p.add_argument(
        "--devices",
        type=command.whole(1),
        default=3,
        help="that split ImageNet's batches in a dry run, which needs none of them; or --mesh",
    )
    p.add_argument(
        "--time",
        type=command.whole(1),
        metavar="STEPS",
        help="tell what a step, an epoch and a prediction of the paper's runs take here, from epochs of so many "
        "steps on noise",
    )
    p.add_argument(
        "--tensorboard", type=command.output, metavar="DIR", help="write the runs' scalars there too"
    )
    datasets.add_arguments(p)
    datasets.add_workers(p)
    sweep.add_arguments(p)
    checkpoints.add_arguments(p, every=10)
    devices.add_arguments(p)
    return p


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    args = parser().parse_args(argv)
    asked_for_work = args.page or args.dry_run or args.time or args.fresh
    args.list |= not args.views and not asked_for_work
    if args.views == [PACK]:
        print(f"{records.pack_all(command.output(args.out))} runs packed below {args.out}.")
        return 0
    chosen = _views(args.views or ([*VIEWS] if args.list else []))
    if args.views:
        for view in chosen:
            view.check(args)
    asked = Asked(
        _results(args), args.scale or "small", _rules(args.rule), args.workloads, args.arms, args.seeds
    )
    if args.list:
        _list(chosen, asked, sweep.where(args))
        return 0
    if args.dry_run:
        _dry_run(chosen, asked, args.devices, args.mesh)
        return 0
    if args.time:
        _time(chosen, asked, args)
        return 0
    command.output(args.out)
    spread = devices.start(args)
    console = Console(quiet=not devices.is_first())
    drawn = [view for view in chosen if view is not tuned.TUNE]
    waiting: list[str] = []
    if not args.page:
        how = sweep.how(args, spread)
        if tuned.TUNE in chosen:
            tuned.tune(asked, how, console)
        for view in drawn:
            view.check_ready(asked)
        if drawn:
            waiting = sweep.train(_plan(drawn, asked), how, console, _log(args))
    if devices.is_first():
        _show(drawn, asked, args.out, console)
    if waiting:
        raise command.RefusedError(" ".join(waiting))
    return 0


def _rules(names: Sequence[str] | None) -> Sequence[str] | None:
    """The rules that were asked for, the baseline first whether or not it is named."""
    if names is None:
        return None
    for name in names:
        if name != BASELINE:
            rule(name)
    return tuple(dict.fromkeys([BASELINE, *names]))


def _views(names: Sequence[str]) -> list[View]:
    known = f"all, {', '.join(VIEWS)}"
    if not names:
        raise ValueError(f"Name a view, or all of the paper's: there are {known}.")
    for name in names:
        if name == PACK:
            raise ValueError(f"`{PACK}` stands alone. Got {' '.join(names)}.")
        if name != "all" and name not in VIEWS:
            raise ValueError(f"There is no view {name!r}. There are {known}.")
    every = [n for name in names for n in (paper.VIEWS if name == "all" else [name])]
    return [VIEWS[name] for name in dict.fromkeys(every)]


def _plan(chosen: Sequence[View], asked: Asked) -> list[sweep.Planned]:
    """All runs of some views, each once."""
    return list({p.config.key: p for view in chosen for p in plan(view, asked)}.values())


def _results(args: argparse.Namespace) -> Sequence[Path]:
    """Where to look for records; the first is where new ones go."""
    return (OUT, COMMITTED) if args.out == OUT and not args.fresh else (args.out,)


def _list(chosen: Sequence[View], asked: Asked, where: datasets.Where) -> None:
    groups = (
        (f"The paper's tables and figures, at scale {asked.scale}:", paper.VIEWS),
        ("At tuned learning rates:", TUNED),
    )
    needed: dict[str, None] = {}
    for heading, group in groups:
        listed = [view for view in chosen if view.name in group]
        if not listed:
            continue
        print(heading)
        for view in listed:
            try:
                told = _cost(_plan([view], asked), asked.scale if group is paper.VIEWS else "")
            except ValueError:  # of pairs without a rate
                told = "after `tune`"
            print(f"{view.name:<11}{told}\n{'':11}{view.claim}\n{'':11}{view.command(asked.scale)}")
            if group is paper.VIEWS:
                for data, rows in _rows_by_data(view, asked).items():
                    names = "; ".join(rows) if len(rows) < 8 else f"{len(rows)} rows"
                    print(f"{'':11}{data}: {names}")
                    needed[data] = None
            if isinstance(view, (tuned.TunedView, tuned.Tuning)):
                print(f"{'':11}arms: {', '.join(arm.name for arm in view.arms)}")
        if group is paper.VIEWS:
            print(f"{'together':<11}{_cost(_plan(listed, asked), asked.scale)}")
        else:
            print(f"{'pairs':<11}{', '.join(pair.name for pair in tuned.pairs_of(None))}")
    print(
        "Minutes are those of training on two CPU cores, hours of the paper's scale what the paper tells of its own "
        "baseline; runs that views share count once in what they take together.\n"
        "Name a view to draw it, and to train what is not recorded: python -m experiments.run VIEW"
    )
    for data in needed:
        print(datasets.missing(data, where) or f"{data} is here.")


def _rows_by_data(view: View, asked: Asked) -> dict[str, list[str]]:
    """The rows of a paper's view by the data set that they need."""
    rows: dict[str, dict[str, None]] = {}
    for need in view.needs(asked):
        assert isinstance(need.config.workload, Images)
        rows.setdefault(need.config.workload.data, {})[need.label] = None
    return {data: list(labels) for data, labels in rows.items()}


def _cost(planned: Sequence[sweep.Planned], scale: str) -> str:
    hours = f"{sum(p.seconds for p in planned) / 3600:5,.0f} h"
    told = hours if scale == "paper" else f"{minutes(planned):5.0f} min"
    return f"{told}  {_status(planned)}{_whose(planned)}"


def _one_of_each(chosen: Sequence[View], asked: Asked) -> Iterator[trainer.Config]:
    """Of every setup one run, under the first rule, and says which."""
    planned = _plan(chosen, asked)
    for folder in dict.fromkeys(p.folder for p in planned):
        configs = [p.config for p in planned if p.folder == folder]
        config = next((c for c in configs if isinstance(c.arm, Predictive)), configs[0])
        print(f"{folder.name}, {config.rule}, {config.epochs} epochs of {config.workload.epoch_steps} steps")
        yield config


def _time(chosen: Sequence[View], asked: Asked, args: argparse.Namespace) -> None:
    """What every setup takes here."""
    from experiments.training import timing  # which imports what only it needs

    spread = devices.start(args)
    for config in _one_of_each(chosen, asked):
        print(f"  {timing.time_steps(config, args.time, spread)}", flush=True)
        if isinstance(config.workload, ImageNet):
            where = sweep.where(args)
            if told := datasets.missing(config.workload.data, where):
                print(f"  the data pipeline is not timed: {told}")
            else:
                rate = timing.images_a_second(config.workload, where, args.time, spread)
                print(f"  the data pipeline alone delivers {rate:,.0f} images a second", flush=True)


def _dry_run(chosen: Sequence[View], asked: Asked, count: int, mesh: str | None) -> None:
    """Model, batch, memory and step of every setup, told from shapes."""
    from experiments.training import dry_run  # which imports what only it needs

    spread = dry_run.abstract(devices.sizes(mesh) if mesh else {"data": count})
    for config in _one_of_each(chosen, asked):
        if isinstance(config.workload, Siamese) or not isinstance(config.arm, Predictive):
            print("  no dry run: it is for classifiers under PDT")
            continue
        together = isinstance(config.workload, ImageNet)
        told = dry_run.dry_run(config, spread if together else devices.ONE_DEVICE)
        print(textwrap.indent(str(told), "  "))


def minutes(planned: Sequence[sweep.Planned]) -> float:
    """About what a plan takes, two runs side by side."""
    return sum(p.seconds for p in planned) / 2 / 60


def _status(planned: Sequence[sweep.Planned]) -> str:
    done = sum(records.read(p.folder, p.config).complete for p in planned)
    return f"{done} of {len(planned)} runs recorded" if planned else "nothing to train"


def _whose(planned: Sequence[sweep.Planned]) -> str:
    """How many of the recorded runs came with the checkout, and how many were trained here."""
    done = [p.folder for p in planned if records.read(p.folder, p.config).complete]
    committed = sum(folder.resolve().is_relative_to(COMMITTED.resolve()) for folder in done)
    return f" ({committed} committed, {len(done) - committed} of this machine)" if done else ""


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


def _show(chosen: Sequence[View], asked: Asked, out: Path, console: Console) -> None:
    """Draws what is recorded: some views, and the pages of all."""
    for view in chosen:
        finds, planned = find(view, asked), _plan([view], asked)
        if planned and not finds:
            console.print(f"{view.name}: nothing is recorded yet.")
            continue
        shown = page.write_view(view, finds, out / view.folder(asked.scale), asked.scale, _status(planned))
        console.print(f"[bold]{view.name}[/bold] {view.title}", highlight=False)
        for said in shown.verdicts if shown.terminal is None else [shown.terminal]:
            console.print(said if shown.terminal is not None else f"  {said}", highlight=False)
    for folder, group, title, about in (
        (
            asked.scale,
            paper.VIEWS,
            f"Predictive Differential Training: the paper's tables and figures, scale {asked.scale}",
            "The paper's numbers stand beside ours. AlexNet's baseline takes its whole run there; ours is its own first "
            f"crossing. {RULE_OF_JUDGEMENT} *Reduced*: {SCALES[asked.scale].reduced}",
        ),
        (tuned.FOLDER, tuned.VIEWS, "Predictive Differential Training at tuned learning rates", ""),
    ):
        if any(view.name in group for view in chosen) and (out / folder).exists():
            folders = {name: view.folder(asked.scale) for name, view in group.items()}
            page.write_index(out, folders, folder, title, about)
            console.print(f"Look at {out / folder / 'index.html'}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
