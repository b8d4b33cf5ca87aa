"""The page of plans, from what launch/plans.sh has made: python launch/plans.py FOLDER > launch/plans.md

Beside the operations that were counted in each compiled step stand those counted here by hand, from the architecture.
FLOPs are 2 for each product and sum of a matrix product; everything else is not counted.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind an installed vlmx

from vlmx import abstract, plan  # noqa: E402
from vlmx.files import read_json  # noqa: E402
from vlmx.models import zoo  # noqa: E402

# Tokens of the longest prompt beside the class name: the context, start, full stop and end.
CONTEXT = {"coop": 16}  # of others 4: "a photo of a"
RUNS = {"vit_b16": "ViT-B/16", "vit_l14": "ViT-L/14", "bart_base": "bart-base", "t5_base": "t5-base"}
CLASSES, SHOTS = 1000, 16
IMAGE_TEXT = {"text": 100, "target": 40, "places": 72, "features": 2048}  # configs/image_text.py: of its longest tasks

HEAD = """# Plans

Made by `launch/plans.sh`, without a TPU: 32 images a chip and 1,000 classes, or 64 examples a chip of the four
image-text tasks, in bfloat16. Memory is the compiler's own account, without its machine code; operations are counted
in the compiled programs and, below each table, by hand; times are estimates. More in [README.md](README.md). A step
that is missing, of all methods, variants and slices that the script names, has not been compiled yet: the same command
goes on with it.
"""


# -------------------------------------------------------------------- CLIP methods
def tower(n, T, D, L, train=False, weights=False):
    """FLOPs of n sequences of T tokens in L blocks of width D: four square maps and two of 4 D, scores and their sum.

    train: and backward to what goes in, where each linear map costs once more and attention, whose both sides depend on
    it, twice; weights: and to the weights, a linear map's third time.
    """
    linear, attention = 2 * n * T * 12 * D**2, 4 * n * T**2 * D
    return L * (linear * (1 + train + weights) + attention * (1 + 2 * train))


def of_method(name, c, B, T, C=CLASSES, shots=SHOTS):
    """FLOPs of a training step of B images among C classes with texts of T tokens, on a CLIP of the ClipConfig c."""
    W, D, E, patches = c.vision.width, c.text.width, c.embed_dim, (c.vision.image_size // c.vision.patch) ** 2

    def vision(n, extra=0, train=False, weights=False):
        """The image tower with `extra` prompts: patches of p x p x 3, the class token; the projection."""
        ends = 2 * n * patches * 3 * c.vision.patch**2 * W * (1 + weights) + 2 * n * W * E * (1 + train + weights)
        return tower(n, 1 + patches + extra, W, c.vision.layers, train, weights) + ends

    def text(n, T, train=False, weights=False):
        """The text tower; the projection."""
        return tower(n, T, D, c.text.layers, train, weights) + 2 * n * D * E * (1 + train + weights)

    def logits(times):
        """Forward, and backward to one side or to both."""
        return 2 * B * C * E * times

    def low_rank(n, T, D, L, r=2, maps=3):
        """Updates of rank r: into r and out of it, forward, and both factors' and the input's gradients."""
        return L * maps * 3 * 2 * n * T * 2 * D * r

    def coop():
        """Rows of 17 tokens that all texts begin with and 16 texts' others; the last row is filled up."""
        rows = -(-C // 16)
        packed = tower(rows, 17 + 16 * (T - 17), D, c.text.layers, True) + 2 * rows * 16 * D * E * 2
        return packed + vision(B) + logits(2)

    def cocoop():
        """Every class in B texts of its own, computed again in the backward pass, and logits for each image apart."""
        return text(B * C, T, True) + text(B * C, T) + vision(B) + logits(3)

    def cache():
        """Affinities with the keys, of which the images' side is frozen; zero-shot logits."""
        return vision(B) + logits(1) + 2 * B * shots * C * E * 2

    def reads(times):
        """The sum of a cache's entries by class, a product with their labels."""
        return 2 * B * shots * C * C * times

    def xmadapter():
        """Both caches are read together and, for how much they disagree, each alone; the text's has two maps."""
        maps = 2 * (B + C) * E * (E // 4) * 2 + 2 * B * C * (E // 4) * 3
        return cache() + reads(2 + 2) + maps

    return {
        "coop": coop,
        "cocoop": cocoop,
        "vpt": lambda: vision(B, 8, True) + logits(2),
        "ivlp": lambda: vision(B, 2, True) + text(C, T, True) + logits(3),
        # 9 layers of 2 vectors go through maps from text to image
        "maple": lambda: vision(B, 2, True) + text(C, T, True) + logits(3) + 9 * 2 * 2 * D * W * 3,
        # beside the prompted towers the frozen one, as the teacher, and its logits
        "promptsrc": lambda: vision(B, 4, True) + vision(B) + text(C, T, True) + logits(4),
        "apex": lambda: vision(B, 2, True) + text(C, T, True) + logits(3) + 3 * 2 * C * E**2,
        "clip_adapter": lambda: vision(B) + logits(2) + 2 * B * 2 * E * E // 4 * 3,
        "taskres": lambda: vision(B) + logits(2),
        "tip_adapter_f": lambda: cache() + reads(2),
        "xmadapter": xmadapter,
        "clip_lora": lambda: (
            vision(B, 0, True) + low_rank(B, 1 + patches, W, c.vision.layers)
            + text(C, T, True) + low_rank(C, T, D, c.text.layers) + logits(3)
        ),
        "full": lambda: vision(B, 0, True, True) + text(C, T, True, True) + logits(3),
    }[name]()  # fmt: skip


def prompt_length(name):
    """Tokens of the longest prompt with an ImageNet class name, as a plan has it where no tokenizer is at hand."""
    names = abstract.data_of({"name": "imagenet", "root": ""})[0].classnames
    words = abstract.Lengths(77, 49408)([name.replace("_", " ") for name in names])
    return int((words > 0).sum(1).max()) - 2 + CONTEXT.get(name, 4) + 3


# -------------------------------------------------------------------- variants of VL-Adapter
def of_variant(name, c, B, *, text, target, places, features, rank=128, length=40, hidden=800, q=8, n=2):
    """FLOPs of a training step of B examples on a T5 or BART of the SeqConfig c.

    Args: tokens of `text`, `target` and what is seen, `places`, from vectors of width `features`; rank of LoRA; length
    and hidden units of prompts; q of Hyperformer; n Kronecker products of Compacter.
    """
    D, A, F, r, P = c.width, c.heads * c.head_dim, c.mlp, c.width // 8, length if "prompt" in name else 0
    (L, M), T, S = c.layers, target, P + text + places
    full = name == "full"

    def linear(tokens, i, o):
        """A map of the backbone: forward, to what goes in, and where it is tuned to its weights."""
        return (2 + full) * 2 * B * tokens * i * o

    def own(tokens, i, o):
        """A map that a variant adds: all three."""
        return 3 * 2 * B * tokens * i * o

    def attends(tokens, others):
        return 3 * 4 * B * tokens * others * A

    def mlp(tokens):
        return linear(tokens, D, (3 if c.gated else 2) * F)

    total = L * (linear(S, 4 * D, A) + attends(S, S) + mlp(S))
    total += M * (linear(T, 6 * D, A) + linear(S, 2 * D, A) + attends(T, T) + attends(T, S) + mlp(T))
    total += linear(T, D, c.vocab + c.added)
    total += 2 * 2 * B * places * (features + 5) * D  # features and boxes are not differentiated
    if any(word in name for word in ("adapter", "shared", "hyperformer", "compacter")):
        total += L * 2 * own(S, D, 2 * r) + M * 3 * own(T, D, 2 * r)
    if "lora" in name:  # of queries and values; the values of cross-attention are of the encoder's tokens
        total += L * 2 * own(S, D + A, rank) + M * (3 * own(T, D + A, rank) + own(S, D + A, rank))
    made = 3 * 2 * (2 * L + 3 * M) * 2 * D * r  # adapters that are themselves computed, for each product
    total += made * (n if "compacter" in name else q if name == "hyperformer" else 0)
    return total + 3 * 2 * P * 2 * D * hidden


# -------------------------------------------------------------------- the page
def by_hand(model, p):
    """FLOPs of a chip's part of a plan's step."""
    B = p["examples"] // p["chips"]
    if model in zoo.MODELS:
        return of_method(p["step"], zoo.MODELS[model].config, B, prompt_length(p["step"]))
    c = zoo.SEQ_MODELS[model].config
    return of_variant(p["step"], dataclasses.replace(c, added=zoo.ADDED[c.family]), B, **IMAGE_TEXT)


def comparison(model, plans):
    """A table: each step's operations as compiled, for every topology, against those by hand."""
    names = list(dict.fromkeys(p["topology"] for p in plans))
    lines = ["| TFLOP a chip | by hand | " + " | ".join(names) + " |", "|---|" + "---:|" * (1 + len(names))]
    for step in dict.fromkeys(p["step"] for p in plans):
        mine = {p["topology"]: p for p in plans if p["step"] == step}
        expected = by_hand(model, next(iter(mine.values())))
        cells = []
        for name in names:
            flops = mine.get(name, {}).get("flops")
            cells.append(f"{flops / 1e12:.3f} ({100 * (flops / expected - 1):+.2f} %)" if flops else "-")
        lines.append(f"| {step} | {expected / 1e12:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(folder):
    """The whole page, in Markdown."""
    parts = [HEAD]
    for run, model in RUNS.items():
        path = Path(folder) / run / "plan.json"
        if path.exists():
            found = read_json(path, "Remove it: its plans are made again.", {"plans": [dict], "title": str})
            parts += [plan.markdown(found["plans"], found["title"]), comparison(model, found["plans"])]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(sys.argv[1]), end="")
