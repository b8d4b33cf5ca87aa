"""vlmx: parameter-efficient tuning of frozen vision-language models (CLIP, VL-T5, VL-BART) in JAX and Flax.

Importing this package imports nothing else; `python -m vlmx.main --help` shows what it does.
"""

__version__ = "0.1.0"
