"""The report on a run, from the command line."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pdt_optax.inspect._report import report

DESCRIPTION = """\
Looks at the saved weights of a run, and says whether Predictive Differential Training is likely to help it. It trains
nothing. FOLDER holds the weights of one run at even distances, such as after every epoch:

  Orbax checkpoints    a CheckpointManager's folder, or one with a folder for each step
  .npz files           one for each step, numbered by name: weights_0001.npz
  a Recorder's file    what pdt_optax.Recorder.save wrote

It prints tables, writes a page with pictures, and ends with a verdict."""

EXIT_CODES = """\
exit codes:
  0    done
  2    bad input: a sentence on stderr says what
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    parser = argparse.ArgumentParser(
        "python -m pdt_optax.inspect",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="FOLDER", help="or file")
    parser.add_argument(
        "--params",
        metavar="KEY",
        help="where in a checkpoint the parameters lie, such as params or state/params",
    )
    parser.add_argument("--from", dest="first", type=int, metavar="STEP", help="the first step to look at")
    parser.add_argument("--to", dest="last", type=int, metavar="STEP", help="the last step to look at")
    parser.add_argument(
        "--html", type=Path, default=Path("pdt-report.html"), help="the page (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        found = report(args.run, params=args.params, first=args.first, last=args.last)
        from pdt_optax.inspect._terminal import show  # which takes what the extra installs

        found.save(args.html)
        show(found)
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"Pictures: {args.html}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
