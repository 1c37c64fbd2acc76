"""Real text on every machine: the source of Python's own standard library, as characters.

The text differs a little from one Python version to the next: compare runs of
one version only.
"""

import sysconfig
from pathlib import Path

import numpy as np

from experiments.data.datasets import Dataset, DataUnavailableError, Split

# About 300 kB to train on, 55 kB to validate on; all there since Python 3.11.
TRAIN = ("argparse", "difflib", "functools", "heapq", "random", "tempfile")
# Ten times as much, of which no small model remembers its own windows.
LONG = (
    *TRAIN,
    *("_pydecimal", "typing", "inspect", "subprocess", "tarfile", "pydoc", "doctest", "turtle", "pickle"),
    *("pickletools", "ipaddress", "ast", "enum", "dataclasses", "statistics", "socket", "ssl", "smtplib"),
    *("imaplib", "ftplib", "mailbox", "optparse", "configparser", "locale", "calendar", "codecs", "platform"),
    *("shutil", "threading", "traceback", "uuid", "selectors", "os", "pdb", "csv", "cmd", "plistlib"),
    *("fractions", "contextlib", "tokenize", "trace", "zipimport", "bdb", "asyncio/base_events"),
    *("email/_header_value_parser", "email/message", "http/client", "http/server", "http/cookiejar"),
    *("logging/__init__", "logging/handlers", "unittest/mock", "unittest/case", "urllib/request"),
    *("urllib/parse", "xml/dom/minidom", "xml/etree/ElementTree", "xmlrpc/client", "multiprocessing/pool"),
    *("multiprocessing/managers", "concurrent/futures/process", "importlib/_bootstrap_external"),
)
VALIDATION = ("gzip", "shlex", "textwrap")

# Newline and printable ASCII; what little else a source file holds is dropped.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


def load(length: int, train: tuple[str, ...] = TRAIN) -> Dataset:
    """Consecutive windows of `length` characters; the target at each position is the next one.

    Args:
      length: of a window, in characters.
      train: the modules to train on, `TRAIN` or `LONG`.

    Raises:
      DataUnavailableError: if a source file is not there.
    """
    return Dataset(_windows(train, length), _windows(VALIDATION, length))


def encode(text: str) -> np.ndarray:
    """Positions in `ALPHABET`, (characters,), uint8."""
    positions = np.full(128, -1)
    positions[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
    encoded = positions[np.frombuffer(text.encode("ascii", "ignore"), np.uint8)]
    return encoded[encoded >= 0].astype(np.uint8)


def _windows(modules: tuple[str, ...], length: int) -> Split:
    folder = Path(sysconfig.get_paths()["stdlib"])
    try:
        text = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in modules)
    except OSError as e:
        raise DataUnavailableError(
            f"The source of Python's standard library is not in {folder} ({e.strerror}: {e.filename}); "
            "install this Python with its library's .py files."
        ) from None
    characters = encode(text)
    count = (len(characters) - 1) // length
    inputs, targets = characters[: count * length], characters[1 : count * length + 1]
    return Split(inputs.reshape(count, length), targets.reshape(count, length).astype(np.int32))
