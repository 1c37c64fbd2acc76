"""What all command lines share: their exit codes, how bad input is told, and the files that they are given."""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXIT_CODES = """\
exit codes:
  0    done
  1    a defect, told by a traceback; of benchmarks.kills also: a run did not survive
  2    bad input, or data or files that cannot be had: a sentence on stderr says which
  130  Ctrl-C; what is recorded is kept
  134  the run's other processes were not found, or one was lost: jax ended this one
  143  SIGTERM; a run with checkpoints is saved first
"""


class RefusedError(Exception):
    """What whoever started a command must set right, in one sentence: rule, reason, values."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `RefusedError`, and whose help ends with the exit codes.

    Args:
      module: that is started, such as "experiments.run".
      doc: its docstring.
    """

    def __init__(self, module: str, doc: str | None):
        class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
            def _get_help_string(self, action: argparse.Action) -> str | None:
                told = action.default is not None and action.default is not False
                return super()._get_help_string(action) if told else action.help

        super().__init__(f"python -m {module}", description=doc, epilog=EXIT_CODES, formatter_class=Formatter)

    def error(self, message: str) -> Any:
        raise RefusedError(message)


Main = Callable[[Sequence[str] | None], int]


def line(main: Main) -> Callable[..., int]:
    """Makes a `main` of arguments into a command line: what is refused is one line on stderr, and 2 is returned."""

    @functools.wraps(main)
    def command(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except (RefusedError, ValueError, OSError) as e:
            print(f"error: {e}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Interrupted: what is recorded is kept.", file=sys.stderr)
            return 130

    return command


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number in a range, by default one that counts something."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}. Got {value}.")
        return value

    number.__name__ = "whole number"
    return number


seed = whole(0, 2**32 - 1)  # jax would take others for one of these


def output(path: str | Path) -> Path:
    """The type of an argument that is a folder to write to; it need not be there yet.

    Raises:
      RefusedError: if no folder can be there, or nothing can be written to it.
    """
    there = next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.exists())
    if not there.is_dir():
        raise RefusedError(f"Results need a folder, and a file is in the way: {there}. Got {str(path)!r}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RefusedError(f"Results need a folder that can be written; {there} cannot. Got {str(path)!r}.")
    return Path(path)


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      OSError: if there is no such file.
      RefusedError: if it holds anything else, or lacks one of the keys.
    """
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as e:
        raise RefusedError(f"{path} is not JSON ({e}): mend it, or move it away.") from None
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        wanted = f"an object with {', '.join(keys)}" if keys else "an object"
        got = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise RefusedError(
            f"{path} must hold {wanted}. Got {got or 'an empty one'}: mend it, or move it away."
        )
    return value
