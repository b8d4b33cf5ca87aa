"""IVLP, independent vision-language prompting (Rasheed et al. 2022, arXiv 2212.03640, and the baseline of MaPLe,
arXiv 2210.03117, section 3.2): learned vectors in both towers, without a link between them.

The text vectors take the places of the first n words of "a photo of a <class>." and start from these; all others start
from noise. n vectors of a layer, J layers with vectors, D width of a tower.
"""

from vlmx.combine import combine
from vlmx.modules import prompts


def make(n_ctx_text=2, n_ctx_vision=2, depth_text=12, depth_vision=12, ctx_init="a photo of a"):
    """Prompts in both towers.

    Args: n_ctx_text, n_ctx_vision: vectors of a layer. depth_text, depth_vision: how many layers have vectors of their
    own. With 0 of either a tower has none, and is frozen. ctx_init: the words in front of the class; more vectors than
    words, or than four, start from noise.
    """
    return combine(prompts.in_both("ivlp", n_ctx_text, n_ctx_vision, depth_text, depth_vision, ctx_init))
