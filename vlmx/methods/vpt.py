"""VPT (Jia et al. 2022, arXiv 2203.12119) on CLIP: learned vectors in the image tower, fixed text.

Equations (4) to (6): shallow prompts enter with the patches (depth 1); deep ones are replaced in each layer. The CLIP
variant, and its placement of the vectors behind the patches, is that of MaPLe's comparison (Khattak et al. 2022, arXiv
2210.03117). n vectors of a layer, J layers with vectors, D width of the image tower.
"""

from vlmx.combine import combine
from vlmx.modules import prompts


def make(n_ctx=8, depth=12):
    """Visual prompts. Args: n_ctx: vectors of a layer. depth: how many layers have vectors of their own; 1: shallow."""
    return combine({"vision": prompts.in_image(n_ctx, depth)})
