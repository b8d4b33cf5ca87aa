"""The text adapter of APEX alone (Yang et al. 2023, arXiv 2311.15569, section 3.2): t W + b on text features.

W starts as the identity, b at zero. Made to be combined, as in "vpt+text_adapter+ensemble".
"""

from vlmx.combine import combine
from vlmx.modules import adapters


def make():
    """A linear map of the text features."""
    return combine({"adapter": adapters.on_text()})
