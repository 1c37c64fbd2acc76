"""Whole combinations by name: `pdt(inner, **presets.paper)`.

- `paper`: the paper's Algorithm 1 with Eqs. 5, 6 and 7
- `released`: what its authors' released code does: all published numbers
- `drift`: the mean motion of the last five snapshots, where signs agree
- `recommended`: the defaults of `pdt` and `Predictor`

The paper and its released code differ; `paper` and `released` follow each to
the letter, at the settings of the paper's experiments. Algorithm 1 waits
`interval` epochs before its first prediction, too, which makes no difference
at the paper's interval of 1: with one above 5, give `start` the same number.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pdt_optax._slow import slow_drift
from pdt_optax.accept import Rule, agree, everything, paper_rule, released_rule
from pdt_optax.dynamics import Dynamics, dmd
from pdt_optax.dynamics import drift as _drift

Preset = Mapping[str, Any]


def _every_other_epoch(dynamics: Dynamics, accept: Rule, horizon: int) -> Preset:
    parts = {"dynamics": dynamics, "accept": accept, "horizon": horizon}
    clock = {"window": 5, "start": 5, "interval": 1}
    return MappingProxyType({**parts, **clock, "own_motion": False, "deliver": "jump"})


_paper_dmd = dmd(rank=None, modes="exact", fit="past", displacement=False)
_released_dmd = dmd(rank="gavish-donoho", modes="projected", fit="past", displacement=True)

paper = _every_other_epoch(_paper_dmd, paper_rule(), horizon=5)
released = _every_other_epoch(_released_dmd, released_rule(), horizon=5)
drift = _every_other_epoch(_drift(), agree(), horizon=1)
recommended: Preset = MappingProxyType(
    {
        "dynamics": slow_drift(),
        "accept": everything(),
        "horizon": 1,
        "window": 1,
        "start": 5,
        "interval": 0,
        "own_motion": True,
        "deliver": "auto",
    }
)

_BY_NAME = {"paper": paper, "released": released, "drift": drift, "recommended": recommended}


def names() -> tuple[str, ...]:
    """The names that `named` knows."""
    return tuple(_BY_NAME)


def named(name: str) -> Preset:
    """The preset called `name`.

    Raises:
      ValueError: if there is no preset of that name.

    Example:
      >>> from pdt_optax import presets
      >>> presets.named("released")["accept"]
      released_rule()
    """
    if name not in names():
        raise ValueError(f"There is no preset {name!r}. The presets are {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]
