"""The settings of a predictor: checked once, here; hashable, so that equal ones share compiled code."""

import dataclasses
import difflib
import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from pdt_optax import _layout, presets
from pdt_optax._predict import check_model
from pdt_optax._slow import slow_drift
from pdt_optax._window import Storage, Window
from pdt_optax.accept import Accept, Rule, as_rule
from pdt_optax.dynamics import Dynamics
from pdt_optax.guard import Guard
from pdt_optax.schedule import Schedule, count, fixed

Deliver = Literal["auto", "jump", "gradual"]

# Those that a history was made with and remembers, each by a checksum; most others are seen in its structure.
DESCRIBED = ("dynamics", "accept", "schedule", "guard", "own_motion")

_USUAL: Any = None  # what the preset of the same kind of model has


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raises TypeError for the name of a setting that there is not."""
    for name in given:
        if name not in known:
            close = [repr(x) for x in difflib.get_close_matches(name, known, 1)]
            way_out = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
            raise TypeError(f"There is no setting {name!r}. {way_out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a boundary depends on; documented in `Predictor`."""

    dynamics: Dynamics = presets.recommended["dynamics"]
    accept: Rule | Accept = _USUAL
    window: int = _USUAL
    schedule: Schedule = _USUAL
    horizon: dataclasses.InitVar[int | None] = None
    interval: dataclasses.InitVar[int | None] = None
    start: int = _USUAL
    guard: Guard | None = None
    own_motion: bool = True
    deliver: Deliver = "auto"
    exclude: _layout.Exclude = None
    project: Callable[[Any], Any] | None = None
    snapshot_dtype: str | None = None
    snapshot_device: str | None = None
    dry_run: bool = False

    def __post_init__(self, horizon: int | None, interval: int | None) -> None:
        running = isinstance(self.dynamics, slow_drift)
        usual = presets.recommended if running else presets.drift
        window = count(
            "window",
            usual["window"] if self.window is None else self.window,
            1 if running else 2,
            "a running mean takes one snapshot" if running else "a difference takes two snapshots",
        )
        usual_start = max(window, usual["start"]) if running else window
        start = usual_start if self.start is None else self.start
        start = count("start", start, 1, "it counts epochs")
        accept = usual["accept"] if self.accept is None else self.accept
        schedule = fixed(interval=usual["interval"]) if self.schedule is None else self.schedule
        if start < window:
            raise ValueError(
                "`start` must be at least `window`: the first prediction needs a full window. "
                f"Got {start=}, {window=}."
            )
        rule = as_rule("accept", accept)
        if running:
            rule.check(self.dynamics)
        if running and rule.minimum_window > 2:
            raise ValueError(
                f"`accept` must need at most one difference: {self.dynamics} has no window, and shows it only the mean motion. "
                f"Got {rule}, which needs {rule.minimum_window - 1}."
            )
        check_model(self.dynamics, rule, max(window, 2) if running else window)
        if not isinstance(schedule, Schedule):
            raise TypeError(
                "`schedule` must be an acceleration schedule, such as `fixed()` or `adaptive()` (with its "
                f"parentheses). Got {schedule!r}."
            )
        if self.deliver not in ("auto", "jump", "gradual"):
            raise ValueError(
                '`deliver` must be "jump", all at the epoch\'s end, "gradual", in equal parts over the updates of '
                f'the next epoch (in `pdt`), or "auto". Got deliver={self.deliver!r}.'
            )
        if running and (self.snapshot_device or (self.snapshot_dtype and window == 1)):
            raise ValueError(
                "`snapshot_device` and `snapshot_dtype` are for a window of older snapshots, and a running mean keeps only "
                f"the newest one: leave them out. Got {window=}, snapshot_device={self.snapshot_device!r}, "
                f"snapshot_dtype={self.snapshot_dtype!r}."
            )
        if running and not self.own_motion:
            raise ValueError(
                f"`own_motion` must be True with {self.dynamics}: it is a mean of the optimizer's own motion. "
                f"Got own_motion={self.own_motion!r}."
            )
        given = {name: x for name, x in (("horizon", horizon), ("interval", interval)) if x is not None}
        if self.guard is not None and not isinstance(self.guard, Guard):
            raise TypeError(f"`guard` must be None or `rollback(...)`. Got {self.guard!r}.")
        if self.project is not None and not callable(self.project):
            raise TypeError(
                "`project` must be None or a function of the predicted weights that returns them within their "
                f"bounds, such as optax.projections.projection_non_negative. Got {self.project!r}."
            )
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
        schedule, exclude = dataclasses.replace(schedule, **given), _layout.hashable(self.exclude)
        known = {"accept": accept, "window": window, "start": start, "schedule": schedule, "exclude": exclude}
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def needs_value(self) -> bool:
        """Whether the epochs' values are needed."""
        return self.schedule.needs_value or self.guard is not None

    @property
    def spectrum(self) -> int:
        """How many singular values and eigenvalues a report has."""
        return max(self.window - 1, 1)

    @property
    def rewrites(self) -> bool:
        """Whether a boundary writes the whole window, and not just the columns that a new snapshot replaces."""
        return self.shifts or self.guard is not None

    @property
    def shifts(self) -> bool:
        """Whether a boundary moves the older snapshots along."""
        return self.own_motion and self.window > 1 and self.snapshot_dtype is None

    def spent(self, window: Window) -> tuple[Window, Window]:
        """The columns of a window that a boundary writes, and those that it only reads."""
        return (window, ()) if self.rewrites else self.storage.split(window)

    @functools.cached_property
    def checksums(self) -> tuple[int, ...]:
        """Of each of `DESCRIBED`, 31 bits of what it means: the same in every process."""
        return tuple(zlib.crc32(_text(getattr(self, name)).encode()) >> 1 for name in DESCRIBED)

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


def _text(value: Any) -> str:
    """A setting as text without addresses: a function is its name, and so is an object that does not print what it is."""
    if isinstance(value, functools.partial):
        return f"{_text(value.func)}{value.args}{value.keywords}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f"{f.name}={_text(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__qualname__}({', '.join(fields)})"
    named = type(value) if type(value).__repr__ is object.__repr__ else value
    return f"{named.__module__}.{named.__qualname__}" if hasattr(named, "__qualname__") else repr(value)
