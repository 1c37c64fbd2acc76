"""Whole combinations by name: `pdt(inner, **presets.paper)`.

- `paper`: the paper's Algorithm 1 with Eqs. 5, 6 and 7
- `released`: what its authors' released code does: all published numbers
- `recommended`: the defaults of `pdt`

The paper and its released code differ; `paper` and `released` follow each to
the letter, at the settings of the paper's experiments.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pdt_optax.accept import Rule, agree, paper_rule, released_rule
from pdt_optax.dynamics import Dynamics, dmd, drift

Preset = Mapping[str, Any]


def _every_other_epoch(dynamics: Dynamics, accept: Rule, horizon: int) -> Preset:
    parts = {"dynamics": dynamics, "accept": accept, "horizon": horizon}
    return MappingProxyType({**parts, "window": 5, "start": 5, "interval": 1})


_paper_dmd = dmd(rank=None, modes="exact", fit="past", displacement=False)
_released_dmd = dmd(rank="gavish-donoho", modes="projected", fit="past", displacement=True)

paper = _every_other_epoch(_paper_dmd, paper_rule(), horizon=5)
released = _every_other_epoch(_released_dmd, released_rule(), horizon=5)
recommended = _every_other_epoch(drift(), agree(), horizon=1)

_BY_NAME = {"paper": paper, "released": released, "recommended": recommended}


def names() -> tuple[str, ...]:
    """The names that `named` knows."""
    return tuple(_BY_NAME)


def named(name: str) -> Preset:
    """The preset called `name`.

    Raises:
      ValueError: if there is none.

    Example:
      >>> from pdt_optax import presets
      >>> presets.named("released")["accept"]
      released_rule()
    """
    if name not in names():
        raise ValueError(f"There is no preset {name!r}. The presets are {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]
