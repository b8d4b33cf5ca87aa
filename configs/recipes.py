"""Each method's published settings, with their source: optimiser, schedule, epochs, batch, hyper-parameters.

A recipe's `hyper` are the arguments of the method's `make`; an entry named as a protocol replaces some of them, or of
the other fields, in that protocol, where the paper does. `epochs` 0 means `epochs_by_shots`: pairs (up to so many
shots, epochs); or, where these are missing too, `steps_per_shot`: steps for each image of a class. A depth is cut to
the layers that a tower has.
"""

import copy
import functools

from ml_collections import ConfigDict


def tuned(hyper, optimizer, batch, epochs, **more):
    """A recipe of a method with gradient steps; epochs: their number, or pairs as in `epochs_by_shots`."""
    by_shots = {"epochs": 0, "epochs_by_shots": epochs} if isinstance(epochs, tuple) else {"epochs": epochs}
    return ConfigDict({"hyper": hyper, "optimizer": optimizer, "batch": batch, **by_shots, **more})


def dassl_sgd(lr):
    """SGD as in Dassl's configs: momentum 0.9, decay 5e-4, the first epoch at 1e-5, then a cosine per epoch."""
    schedule = {"name": "dassl", "warmup": 1, "kind": "constant", "first": 1e-5}
    return {"name": "sgd", "lr": lr, "wd": 5e-4, "momentum": 0.9, "schedule": schedule}


def transfer(**replaced):
    """What a recipe replaces where it is trained to be tested on other data sets."""
    return {protocol: copy.deepcopy(replaced) for protocol in ("cross_dataset", "domain_generalization")}


def zero_shot():
    """Nothing is trained (arXiv 2103.00020)."""
    return ConfigDict({"hyper": {"templates": "dataset"}})


def linear_probe():
    """scikit-learn's L-BFGS, at most 1000 iterations (arXiv 2103.00020, appendix A.3)."""
    return ConfigDict({"hyper": {"max_iter": 1000}})


def coop():
    """CoOp, configs/trainers/CoOp/vit_b16.yaml and its ep50, ep100: 16 vectors from noise; in the base-to-new table of
    CoCoOp (arXiv 2203.05557) the vectors start from "a photo of a"."""
    hyper = {"n_ctx": 16, "ctx_init": "", "class_token_position": "end", "csc": False}
    epochs = ((1, 50), (4, 100), (16, 200))
    return tuned(hyper, dassl_sgd(0.002), 32, epochs, base_to_new={"ctx_init": "a photo of a"})


def cocoop():
    """CoCoOp, configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml. `microbatch` is ours, of no effect on
    results."""
    hyper = {"n_ctx": 4, "ctx_init": "a photo of a", "reduction": 16, "microbatch": 1024}
    return tuned(hyper, dassl_sgd(0.002), 1, 10)


def vpt():
    """VPT in MaPLe's repository, configs/trainers/VPT/vit_b16_c2_ep5_batch4_4.yaml: deep, 8 vectors."""
    return tuned({"n_ctx": 8, "depth": 12}, dassl_sgd(0.0025), 4, 5)


def ivlp():
    """IVLP in MaPLe's repository, configs/trainers/IVLP/vit_b16_c2_ep5_batch4_2+2ctx.yaml."""
    counts = {"n_ctx_text": 2, "n_ctx_vision": 2, "depth_text": 12, "depth_vision": 12}
    return tuned({**counts, "ctx_init": "a photo of a"}, dassl_sgd(0.0035), 4, 5)


def maple():
    """MaPLe, configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml, and its cross_datasets."""
    hyper = {"n_ctx": 2, "depth": 9, "ctx_init": "a photo of a"}
    return tuned(hyper, dassl_sgd(0.0035), 4, 5, **transfer(depth=3, epochs=2, optimizer={"lr": 0.0026}))


def promptsrc():
    """PromptSRC, configs/trainers/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml, and its few_shot and cross_datasets."""
    counts = {"n_ctx_text": 4, "n_ctx_vision": 4, "depth_text": 9, "depth_vision": 9}
    weights = {"text_weight": 25.0, "image_weight": 10.0, "gpa_mean": 15.0, "gpa_std": 1.0, "teacher_templates": 60}
    more = {"few_shot": {"epochs": 50, "gpa_mean": 30.0, "gpa_std": 30.0}}
    more |= transfer(depth_text=3, depth_vision=3, gpa_mean=6.0, gpa_std=10.0)
    return tuned({**counts, "ctx_init": "a photo of a", **weights}, dassl_sgd(0.0025), 4, 20, **more)


def apex():
    """APEX, configs/trainers/APEX/vit_b16_c2_ep15_batch16_2+2ctx.yaml; the first epoch at 0.01. Published with 20
    seeds; for other data sets with fewer layers and without augmentation (data.augment); on ImageNet with 5 epochs."""
    counts = {"n_ctx_text": 2, "n_ctx_vision": 2, "depth_text": 1, "depth_vision": 12}
    hyper = {**counts, "ctx_init": "a photo of a", "beta": 4.0, "threshold": 0.05}
    schedule = {"name": "dassl", "warmup": 1, "kind": "linear", "first": 0.01}
    optimizer = {"name": "adadelta", "lr": 0.15, "wd": 1e-3, "rho": 0.9, "eps": 1e-6, "schedule": schedule}
    less = transfer(depth_vision=3, epochs=6, batch=32, optimizer={"lr": 0.02, "schedule": {"first": 1e-3}})
    return tuned(hyper, optimizer, 16, 15, **less)


def clip_adapter():
    """CLIP-Adapter's ratio and width (arXiv 2110.04544, released code). Its settings of training are not released:
    these are ours, those of Tip-Adapter-F (AdamW, cosine per step to 0, batch 256, 20 epochs)."""
    optimizer = {"name": "adamw", "lr": 1e-3, "wd": 0.01, "eps": 1e-4, "schedule": {"name": "cosine"}}
    return tuned({"ratio": 0.2, "reduction": 4}, optimizer, 256, 20)


def taskres():
    """TaskRes, configs/trainers/TaskRes/adam_lr2e-3_B256_ep100.yaml and its ep200. What differs on ImageNet and Oxford
    Flowers is in their configs."""
    schedule = {"name": "dassl", "warmup": 1, "kind": "constant", "first": 1e-5}
    optimizer = {"name": "adam", "lr": 2e-3, "wd": 5e-4, "schedule": schedule}
    return tuned({"alpha": 0.5, "templates": "dataset"}, optimizer, 256, ((4, 100), (16, 200)))


CACHE = {"alpha": 1.17, "beta": 1.0, "search_scale": (7.0, 3.0), "search_step": (200, 20), "templates": "dataset"}
CACHE |= {"scale": 0.0, "k": 0}


VIEWS = 10  # random crops of each training image, the mean of which is its key, where data.augment is "crop"


def tip_adapter():
    """Tip-Adapter, configs/imagenet.yaml of its repository; those of the other benchmarks are in `published`."""
    return ConfigDict({"hyper": CACHE, "views": VIEWS})


def tip_adapter_f():
    """Tip-Adapter-F, as tip_adapter; its optimiser and schedule are in its main.py."""
    optimizer = {"name": "adamw", "lr": 1e-3, "wd": 0.01, "eps": 1e-4, "schedule": {"name": "cosine"}}
    return tuned(CACHE, optimizer, 256, 20, views=VIEWS)


def xmadapter():
    """XMAdapter (arXiv 2404.12588): no code is public; as Tip-Adapter-F where the paper is silent, the rest is ours."""
    recipe = tip_adapter_f()
    ours = {"train_keys": True, "text_cache": "coop", "reduction": 4, "gamma": 0.8, "adapt_gamma": "scalar"}
    recipe.hyper.update(ours | {"lam": 1.0, "hard_scale": 1.0, "mask_self": False})
    return recipe


def without(**changed):
    """XMAdapter with a part of it taken away: a recipe under a name of its own."""
    recipe = xmadapter()
    recipe.method = "xmadapter"
    recipe.hyper.update(changed)
    return recipe


def clip_lora():
    """CLIP-LoRA (arXiv 2405.18541, section 4): 500 steps for each shot, a cosine per step to 1e-6."""
    hyper = {"rank": 2, "alpha": 1.0, "dropout": 0.25, "maps": "qkv", "towers": "both", "position": "all"}
    schedule = {"name": "cosine", "end": 1e-6}
    optimizer = {"name": "adamw", "lr": 2e-4, "wd": 0.01, "schedule": schedule}
    return tuned(hyper, optimizer, 32, 0, steps_per_shot=500)


def full():
    """No paper's: an upper reference. AdamW at 1e-5 with a tenth of it as decay, as is usual in fine-tuning CLIP."""
    optimizer = {"name": "adamw", "lr": 1e-5, "wd": 0.1, "schedule": {"name": "cosine", "warmup": "10 percent"}}
    return tuned({}, optimizer, 32, 10)


# Tip-Adapter's configs of other benchmarks: beta, alpha, and the upper ends of their search.
CACHES = {
    "caltech101": (1.0, 3.0, (12.0, 5.0)),
    "dtd": (1.0, 2.0, (13.0, 13.0)),
    "eurosat": (1.0, 2.0, (12.0, 10.0)),
    "fgvc_aircraft": (1.0, 5.0, (30.0, 30.0)),
    "food101": (1.0, 1.17, (10.0, 10.0)),
    "oxford_flowers": (1.0, 10.0, (50.0, 50.0)),
    "stanford_cars": (1.0, 3.0, (20.0, 10.0)),
    "sun397": (1.0, 1.17, (12.0, 10.0)),
    "ucf101": (1.0, 3.0, (7.0, 3.0)),
}
# The embedded benchmarks': ours, wide enough for their validation images.
CACHES |= dict.fromkeys(("digits", "objects", "textures"), (1.0, 1.17, (20.0, 10.0)))


# XMAdapter's ablations: one cache alone, hard images that count like others, a share of the caches that stays.
ABLATIONS = {
    "xmadapter_image": functools.partial(without, gamma=1.0),
    "xmadapter_text": functools.partial(without, gamma=0.0),
    "xmadapter_alike": functools.partial(without, lam=0.0),
    "xmadapter_fixed": functools.partial(without, adapt_gamma="no"),
}


def published(benchmark):
    """{method: what its recipe replaces for a benchmark}, of the methods with a cache."""
    changes = {"templates": "ensemble"} if benchmark == "imagenet" else {}
    if benchmark in CACHES:
        changes = dict(zip(("beta", "alpha", "search_scale"), CACHES[benchmark], strict=True))
    found = {method: {"hyper": changes} for method in ("tip_adapter", "tip_adapter_f", "xmadapter", *ABLATIONS)}
    for method in ("tip_adapter_f", "xmadapter", *ABLATIONS) if benchmark == "eurosat" else ():
        found[method] |= {"epochs": 100}
    return found


PRIORS = dict.fromkeys(("xmadapter", *ABLATIONS), "coop")  # trained first, with a recipe of its own
SEEDS = {"apex": 20}  # published with more seeds than three


def text_adapter():
    """The text adapter of APEX alone, trained as APEX is."""
    recipe = apex()
    recipe.hyper = ConfigDict()
    return ConfigDict({k: v for k, v in recipe.items() if k not in transfer()})


def adapters():
    """Adapters inside CLIP's towers. No paper's settings: ours, with CLIP-LoRA's optimiser."""
    optimizer = {"name": "adamw", "lr": 2e-4, "wd": 0.01, "schedule": {"name": "cosine"}}
    return tuned({"source": "adapter", "options": {}}, optimizer, 32, 10)


def ensemble():
    """The adaptive ensemble on top of another method, with APEX's settings."""
    return ConfigDict({"hyper": {"beta": 4.0, "threshold": 0.05}})


PROMPTS = (coop, cocoop, vpt, ivlp, maple, promptsrc, apex)
CACHED = (tip_adapter, tip_adapter_f, xmadapter)
OTHERS = (clip_adapter, taskres, clip_lora, full)
RECIPES = {f.__name__: f for f in (zero_shot, linear_probe, *PROMPTS, *CACHED, *OTHERS)}
PARTS = {f.__name__: f for f in (text_adapter, adapters, ensemble)}  # made to be joined with a method by "+"
