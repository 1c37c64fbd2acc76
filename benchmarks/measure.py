"""How times are taken, and on what."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import pdt_optax
from experiments import command

RESULTS = Path(__file__).parent / "results"  # of the checkout; written only where --out names it
OUT = Path("runs/benchmarks")

# glibc's: how big an allocation must be to be given back to the system at once, and
# when the heap shrinks. Memory that comes from the system anew is paid for in page faults.
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "XLA_FLAGS")


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, taken in turns so that a slow spell of the machine meets them all.

    Every second turn goes backwards: none is always the one after another.
    Each call is made once beforehand: to compile, and to touch its memory.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in [*calls.items()][:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and range, in milliseconds."""
    ms = 1e3 * np.array(seconds)
    return {
        "median_ms": _rounded(np.median(ms)),
        "min_ms": _rounded(ms.min()),
        "max_ms": _rounded(ms.max()),
    }


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios of calls that were made in the same turn."""
    return _rounded(np.median(np.array(above) / np.array(below)))


def _rounded(x: Any) -> float:
    return float(f"{float(x):.4g}")


class InPlace:
    """A jitted function that updates some of its arguments in place, called again and again on its own results.

    Args:
      function: returns the new values of the arguments at `donated`, in that
        order and as a tuple, and then whatever else.
      arguments: for the first call; those that are donated are copied.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]):
        self.arguments = list(arguments)
        for i in donated:
            self.arguments[i] = jax.tree.map(jax.numpy.copy, self.arguments[i])
        self.donated = donated
        self.compiled = jax.jit(function, donate_argnums=donated).lower(*self.arguments).compile()

    def __call__(self) -> Any:
        results = self.compiled(*self.arguments)
        for i, value in zip(self.donated, results, strict=False):
            self.arguments[i] = value
        return results

    @property
    def temporary_bytes(self) -> int:
        """What it allocates beyond its arguments and results."""
        memory: Any = self.compiled.memory_analysis()
        return memory.temp_size_in_bytes


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": f"{device.platform}: {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "pdt_optax": pdt_optax.__version__,
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str | None:
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parser(name: str, doc: str | None) -> command.Parser:
    """A command line with the options that all benchmarks share."""
    p = command.Parser(f"benchmarks.{name}", doc)
    p.add_argument("--out", type=command.output, default=OUT, help="folder for the figures")
    p.add_argument(
        "--repeats", type=command.whole(1), default=9, help="timed calls of each function, taken in turns"
    )
    return p


def write(out: Path, name: str, figures: dict[str, Any]) -> None:
    """Prints the figures and writes them, with the machine, to OUT/NAME.json."""
    path = out / f"{name}.json"
    text = json.dumps({"machine": machine()} | figures, indent=2)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(f"Written to {path}.")
