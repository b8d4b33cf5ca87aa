"""vlmx: parameter-efficient tuning of frozen vision-language models (CLIP, VL-T5, VL-BART) in JAX and Flax.

Importing this package imports nothing else; `python -m vlmx.main --help` shows what it does.
"""

import os
import sys

__version__ = "0.1.0"

# `python -m vlmx.<command>` searches the current folder first, which may be a downloaded one with a json.py or numpy.py
# in it: behind all packages, unless vlmx itself lies there. In a program of somebody else's nothing is changed.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    if sys.orig_argv[sys.orig_argv.index("-m") + 1].partition(".")[0] == "vlmx":
        sys.path.append(sys.path.pop(0))
