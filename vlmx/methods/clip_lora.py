"""CLIP-LoRA (Zanella & Ben Ayed 2024, arXiv 2405.18541): low-rank updates of the attention in both towers.

Section 4: the maps q, k and v of every layer become W + (alpha / sqrt(r)) B A; the factor of the cosines is 100. The
classes are read in the first of the data set's own templates. L layers, D width of a tower, r rank.
"""

from vlmx.combine import combine
from vlmx.errors import UserError, unknown
from vlmx.method import check_word
from vlmx.models.clip import cosine
from vlmx.modules import lora

TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}
# The layers with updates, from and to, in sixths of a tower. Of 12 layers they are the released code's lists. That code
# takes the lists of 12 for the 24 layers of ViT-L/14 too ("half-up" are the layers 6 to 11), and 0 to 20 for "all".
# Here "half-up" is the upper half of any tower, and "all" is all of it.
POSITIONS = {"all": (0, 6), "bottom": (0, 2), "mid": (2, 4), "up": (4, 6), "half-bottom": (0, 3), "half-up": (3, 6)}
TOP = {"top": 1, "top1": 1, "top2": 2, "top3": 3}  # the last ones


def make(rank=2, alpha=1.0, dropout=0.25, maps="qkv", towers="both", position="all"):
    """Low-rank adaptation.

    Args: rank: of the updates. alpha: their scale is alpha / sqrt(rank). dropout: of the updates' input, in training.
    maps: letters out of "qkvo". towers: "both", "vision" or "text". position: the layers with updates: "all"; "bottom",
    "mid" or "up", a third of them; "half-bottom" or "half-up"; "top" or "top1", "top2", "top3", the last ones; or
    numbers of layers, counted from 0, of which a tower takes those that it has.
    """
    check_word("clip_lora.towers", towers, TOWERS)
    if bad := [name for name in maps if name not in "qkvo"]:
        raise unknown("map in clip_lora.maps", bad[0], "qkvo")
    if not maps or len(set(maps)) < len(maps):
        raise UserError(f"clip_lora.maps: letters out of 'qkvo', at least one and each once; got {maps!r}.")
    if isinstance(position, str):
        check_word("clip_lora.position", position, POSITIONS | TOP)
    parts = {
        tower: lora.part(tower, rank, alpha / rank**0.5, dropout, maps, lambda L, t=tower: layers(position, L, t))
        for tower in TOWERS[towers]
    }
    parts = {name: part._replace(template=lambda task: task.templates[0]) for name, part in parts.items()}
    return combine(parts, logits=lambda model, img, txt: 100 * cosine(img, txt))


def layers(position, L, tower):
    """The layers with updates of a tower of L, a list of numbers. UserError where there are none."""
    if not isinstance(position, str):
        chosen = position
    elif position in TOP:
        chosen = range(L - TOP[position], L)
    else:
        first, last = POSITIONS[position]
        chosen = range(L * first // 6, L * last // 6)
    chosen = [i for i in range(L) if i in chosen]
    if not chosen:
        raise UserError(f"clip_lora.position {position!r} is none of the {L} layers of the {tower} tower.")
    return chosen
