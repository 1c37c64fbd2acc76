"""Where and when a run is trained: commit, date, machine and versions."""

import datetime
import functools
import os
import platform
import re
import subprocess
from pathlib import Path

import jax

EXPERIMENTS = Path(__file__).parents[1]
MADE = ("commit", "date", "machine", "python", "jax")


@functools.cache
def commit() -> str:
    """The commit of the checkout, with a mark if it was changed; "unknown" outside of one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=EXPERIMENTS, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ":!results")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor or accelerators."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    if jax.default_backend() == "cpu":
        count, models = os.cpu_count(), Path("/proc/cpuinfo")
        found = re.search(r"model name\s*: (.*)", models.read_text()) if models.exists() else None
        kind = found[1] if found else platform.processor() or "CPU"
    return f"{count} x {kind}"


def made() -> dict[str, str]:
    """All of it, for a record."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return dict(
        zip(MADE, (commit(), day, machine(), platform.python_version(), jax.__version__), strict=True)
    )
