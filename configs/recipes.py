"""Each method's published settings, with their source: optimiser, schedule, epochs, batch, hyper-parameters.

A recipe's `hyper` are the arguments of the method's `make`; `base_to_new` replaces some of them in that protocol, where
the paper does. `epochs` 0 means `epochs_by_shots`: pairs (up to so many shots, epochs).
"""

from ml_collections import ConfigDict


def zero_shot():
    """Nothing is trained (arXiv 2103.00020)."""
    return ConfigDict({"hyper": {"templates": "dataset"}})


def linear_probe():
    """scikit-learn's L-BFGS, at most 1000 iterations (arXiv 2103.00020, appendix A.3)."""
    return ConfigDict({"hyper": {"max_iter": 1000}})


def coop():
    """CoOp, configs/trainers/CoOp/vit_b16.yaml and its ep50, ep100: 16 vectors from noise; in the base-to-new table of
    CoCoOp (arXiv 2203.05557) the vectors start from "a photo of a"."""
    return ConfigDict(
        {
            "hyper": {"n_ctx": 16, "ctx_init": "", "class_token_position": "end", "csc": False},
            "base_to_new": {"ctx_init": "a photo of a"},
            "optimizer": {
                "name": "sgd",
                "lr": 0.002,
                "wd": 5e-4,
                "momentum": 0.9,
                "schedule": {"name": "dassl", "warmup": 1, "kind": "constant", "first": 1e-5},
            },
            "batch": 32,
            "epochs": 0,
            "epochs_by_shots": ((1, 50), (4, 100), (16, 200)),
        }
    )


RECIPES = {f.__name__: f for f in (zero_shot, linear_probe, coop)}
