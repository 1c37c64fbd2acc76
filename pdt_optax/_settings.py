"""The settings of a predictor: checked once, here; hashable, so that equal ones share compiled code."""

import dataclasses
import functools
from typing import Any

from pdt_optax import _layout, presets
from pdt_optax._predict import check_model
from pdt_optax._window import Storage
from pdt_optax.accept import Accept, Rule, as_rule
from pdt_optax.dynamics import Dynamics
from pdt_optax.guard import Guard
from pdt_optax.schedule import Schedule, count, fixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a boundary depends on; documented in `Predictor`."""

    dynamics: Dynamics = presets.recommended["dynamics"]
    accept: Rule | Accept = presets.recommended["accept"]
    window: int = presets.recommended["window"]
    schedule: Schedule = fixed()
    horizon: dataclasses.InitVar[int | None] = None
    interval: dataclasses.InitVar[int | None] = None
    start: int | None = None
    guard: Guard | None = None
    exclude: _layout.Exclude = None
    snapshot_dtype: str | None = None
    snapshot_device: str | None = None
    dry_run: bool = False

    def __post_init__(self, horizon: int | None, interval: int | None) -> None:
        window = count("window", self.window, 2, "a difference takes two snapshots")
        start = window if self.start is None else count("start", self.start, 1, "it counts epochs")
        if start < window:
            raise ValueError(
                "`start` must be at least `window`: the first prediction needs a full window. "
                f"Got {start=}, {window=}."
            )
        check_model(self.dynamics, self.rule, window)
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                "`schedule` must be an acceleration schedule, such as `fixed()` or `adaptive()` (with its "
                f"parentheses). Got {self.schedule!r}."
            )
        given = {name: x for name, x in (("horizon", horizon), ("interval", interval)) if x is not None}
        if self.guard is not None and not isinstance(self.guard, Guard):
            raise TypeError(f"`guard` must be None or `rollback(...)`. Got {self.guard!r}.")
        if self.snapshot_dtype not in (None, "bfloat16"):
            raise ValueError(
                '`snapshot_dtype` must be None, whole snapshots in the types of the parameters, or "bfloat16", '
                f"their differences. Got snapshot_dtype={self.snapshot_dtype!r}."
            )
        if self.snapshot_device not in (None, "host"):
            raise ValueError(
                '`snapshot_device` must be None, beside the parameters, or "host", in host memory between '
                f"predictions. Got snapshot_device={self.snapshot_device!r}."
            )
        schedule, exclude = dataclasses.replace(self.schedule, **given), _layout.hashable(self.exclude)
        known = {"window": window, "start": start, "schedule": schedule, "exclude": exclude}
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def needs_value(self) -> bool:
        """Whether the epochs' values are needed."""
        return self.schedule.needs_value or self.guard is not None

    @property
    def rule(self) -> Rule:
        """`accept`, also where it was given as a plain function."""
        return as_rule("accept", self.accept)

    @functools.cached_property
    def storage(self) -> Storage:
        """How the window is kept."""
        return Storage(self.snapshot_dtype, self.snapshot_device == "host")

    @functools.cached_property
    def shared(self) -> "Settings":
        """Those that a compiled boundary depends on: which leaves are out is known from the snapshots."""
        known: Any = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "exclude"}
        return Settings(**known)
