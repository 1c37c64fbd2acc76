"""What all tests share: a cache of compiled programs, quick compilation, and the order they start in.

The environment is set before anything imports jax, and every process that a test starts inherits it.
"""

import itertools
import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Most of a test is compiling. JAX's key of an entry holds the program, the devices and XLA's flags, not all of JAX:
# each version has a folder of its own.
_CACHE = Path(__file__).parents[1] / ".cache" / "jax" / version("jax")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Optimizing takes longer than it saves here. `make test-all` compiles as users do: it sets no flags.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)


# Every compiled program maps memory, and a process of Linux has 65,530 maps: past them XLA crashes.
_MAPS, _MOST, _EVERY = Path("/proc/self/maps"), 30_000, 8
_ended = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Forgets what was compiled before there are too many programs; the cache has them still."""
    if next(_ended) % _EVERY == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST:
        import jax  # after the environment is set

        jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test starts first, so that no worker ends alone with it."""
    items.sort(key=lambda item: item.name != "test_on_eight_devices")
