"""A view: a table or figure over records, which says what it needs. Nothing here trains."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from experiments.training import records
from experiments.training.records import Run
from experiments.training.sweep import Planned
from experiments.training.trainer import Config


class Asked(NamedTuple):
    """What is asked of views; None for what they take by themselves.

    Attributes:
      results: folders to look for records in; the first is where new ones go.
      scale, rules: of the paper's views.
      workloads, arms: of those at tuned rates.
      seeds: of all.
    """

    results: Sequence[Path]
    scale: str = "small"
    rules: Sequence[str] | None = None
    workloads: Sequence[str] | None = None
    arms: Sequence[str] | None = None
    seeds: Sequence[int] | None = None


class Found(NamedTuple):
    """What is recorded under a label: its complete runs, and the arrays of those of the first seed, by arm."""

    runs: list[Run]
    arrays: Mapping[str, Mapping[str, np.ndarray]]

    def of(self, rule: str) -> list[Run]:
        """The runs of one arm."""
        return [run for run in self.runs if run.rule == rule]

    @property
    def rules(self) -> list[str]:
        """The arms that there are, the baseline first."""
        return list(dict.fromkeys(run.rule for run in self.runs))


Finds = Mapping[str, Found]  # by label


class Shown(NamedTuple):
    """What a view came to: tables as lines of cells, the first a header; pictures; and what of the claim holds."""

    tables: Mapping[str, Sequence[Sequence[str]]]
    pictures: Mapping[str, str]
    verdicts: Sequence[str]
    terminal: Any = None  # for the terminal, in place of the verdicts


Render = Callable[[str, Finds, Path], Shown]


class Need(NamedTuple):
    """A run that a view takes: its label, the folder of its record in a folder of results, and its seconds."""

    label: str
    folder: str
    seconds: float
    config: Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A table or figure.

    Attributes:
      name, title, claim: how it is called, what it shows, and what it is to find out.
      render: draws into a folder.
      note: what else a reader must know.
    """

    name: str
    title: str
    claim: str
    render: Render
    note: str = ""

    options: ClassVar[tuple[str, ...]] = ()  # of the command line, that are not for every kind of view

    def needs(self, asked: Asked) -> list[Need]:
        """All runs that the view takes."""
        raise NotImplementedError

    def folder(self, scale: str) -> str:
        """Where it is drawn, in a folder of results."""
        raise NotImplementedError

    def command(self, scale: str) -> str:
        """What draws it."""
        del scale
        return f"python -m experiments.run {self.name}"

    def check_ready(self, asked: Asked) -> None:
        """Raises ValueError if something else must be run before what the view takes can be trained."""

    def check(self, args: argparse.Namespace) -> None:
        """Raises ValueError if the arguments ask what is not this kind of view's to answer."""
        for name in dict.fromkeys(o for kind in View.__subclasses__() for o in kind.options):
            given = getattr(args, name.replace("-", "_"))
            if given and name not in self.options:
                told = "" if given is True else " " + " ".join(map(str, np.atleast_1d(given)))
                known = ", ".join(f"`--{option}`" for option in self.options)
                raise ValueError(
                    f"`--{name}` is not for {self.name}, which takes {known}. Got --{name}{told}."
                )


def placed(needs: Sequence[Need], results: Sequence[Path]) -> list[Planned]:
    """Runs with the folders of their records: those of a label are in the first of `results` that has them all."""
    places = {
        label: records.place([of / folder for of in results], [n.config for n in needs if n.label == label])
        for label, folder in dict.fromkeys((n.label, n.folder) for n in needs)
    }
    return [Planned(places[n.label], n.config, n.seconds) for n in needs]


def plan(view: View, asked: Asked) -> list[Planned]:
    """All runs of a view."""
    return placed(view.needs(asked), asked.results)


def find(view: View, asked: Asked) -> dict[str, Found]:
    """What is recorded of a view."""
    found: dict[str, Found] = {}
    needs = view.needs(asked)
    for need, planned in zip(needs, placed(needs, asked.results), strict=True):
        run = records.read(planned.folder, need.config)
        if run.complete:
            entry = found.setdefault(need.label, Found([], {}))
            entry.runs.append(run)
            if need.config.watch:
                arrays = {**entry.arrays, run.rule: records.arrays(planned.folder, need.config)}
                found[need.label] = entry._replace(arrays=arrays)
    return found
