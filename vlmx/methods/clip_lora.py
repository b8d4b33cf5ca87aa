"""CLIP-LoRA (Zanella & Ben Ayed 2024, arXiv 2405.18541): low-rank updates of the attention in both towers.

Section 4: the maps q, k and v of every layer become W + (alpha / sqrt(r)) B A; the factor of the cosines is 100.
L layers, D width of a tower, r rank.
"""

from vlmx.combine import combine
from vlmx.errors import unknown
from vlmx.models.clip import cosine
from vlmx.modules import lora

TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}


def make(rank=2, alpha=1.0, dropout=0.25, maps="qkv", towers="both"):
    """Low-rank adaptation.

    Args: rank: of the updates. alpha: their scale is alpha / sqrt(rank). dropout: of the updates' input, in training.
    maps: letters out of "qkvo". towers: "both", "vision" or "text".
    """
    if towers not in TOWERS:
        raise unknown("value of clip_lora.towers", towers, TOWERS)
    if bad := [name for name in maps if name not in "qkvo"]:
        raise unknown("map in clip_lora.maps", bad[0], "qkvo")
    parts = {tower: lora.part(tower, rank, alpha / rank**0.5, dropout, maps) for tower in TOWERS[towers]}
    return combine(parts, logits=lambda model, img, txt: 100 * cosine(img, txt))
