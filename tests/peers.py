"""PyDMD, whose own files and plotting dependencies warn when they are first imported: not ours to fix."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pydmd import DMD

__all__ = ["DMD"]
