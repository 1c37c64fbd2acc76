"""A report on one's own run: whether its path goes on, layer by layer, and what PDT is likely to be worth (extra `inspect`).

`python -m pdt_optax.inspect FOLDER` prints it and writes a page with pictures;
`report` is the same from Python. It reads saved weights, or a `Recorder`'s
file, and trains nothing.
"""

from pdt_optax.inspect._read import Saved, read
from pdt_optax.inspect._report import Report, report
from pdt_optax.inspect._tuned import Expected, Pair, expected, left_out, pairs

__all__ = ["Expected", "Pair", "Report", "Saved", "expected", "left_out", "pairs", "read", "report"]
