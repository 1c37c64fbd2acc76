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

from pdt_optax.accept import agree, paper_rule, released_rule
from pdt_optax.dynamics import dmd, drift

Preset = Mapping[str, Any]

_EVERY_OTHER_EPOCH = {"window": 5, "start": 5, "interval": 1}

paper: Preset = MappingProxyType(
    {
        "dynamics": dmd(rank=None, modes="exact", fit="past", displacement=False),
        "accept": paper_rule(),
        "horizon": 5,
        **_EVERY_OTHER_EPOCH,
    }
)

released: Preset = MappingProxyType(
    {
        "dynamics": dmd(rank="gavish-donoho", modes="projected", fit="past", displacement=True),
        "accept": released_rule(),
        "horizon": 5,
        **_EVERY_OTHER_EPOCH,
    }
)

recommended: Preset = MappingProxyType(
    {"dynamics": drift(), "accept": agree(), "horizon": 1, **_EVERY_OTHER_EPOCH}
)

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
