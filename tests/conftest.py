"""What all tests share: a cache of compiled programs, quick compilation, and the order they start in.

The environment is set before anything imports jax, and every process that a test starts inherits it.
"""

import os
from collections.abc import Iterator
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
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


@pytest.fixture
def uncached() -> Iterator[None]:
    """For tests that compare how long compiling takes: within one, programs come from no cache on disk."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or the answer to whether there is one would stay as it was
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test starts first, so that no worker ends alone with it."""
    items.sort(key=lambda item: item.name != "test_on_eight_devices")
