"""What the benchmark configs have in common: the fields, and the argument behind the colon of --config."""

import ast
import re

from ml_collections import ConfigDict

from configs import recipes
from vlmx import fields
from vlmx.data.protocols import PROTOCOLS
from vlmx.errors import UserError, unknown

METHODS = ("zero_shot", "linear_probe", "coop")
USUAL = ("few_shot", "base_to_new")
# What cross_dataset and domain_generalization test on by default: the others of a family, and the shifted versions.
TEN = (
    *("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
FAMILIES = (("objects", "textures", "digits"), ("imagenet", *TEN))
SHIFTS = {
    "imagenet": ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
    "objects": ("objects_sketch", "objects_noise", "objects_inverted", "objects_lowres"),
}
SEEDS = fields.integer(1, 10_000)._replace(expected="how many seeds, at most 10,000, or a tuple of seeds")
RATES = fields.several(fields.number(), least=1, different=True)
RATES = RATES._replace(expected="a number, at least 0, or different ones as in (0.001,0.01)")
TOP = ("shots", "seeds", "protocols", "root", "model", "lr")


def benchmark(
    name, arg=None, *, model="ViT-B/16", augment="crop", methods=METHODS, protocols=USUAL, published=None, **data
):
    """The config of a benchmark.

    Args: name: of the data set (vlmx/data/task.py). arg: behind the colon, `method[,method...][,key=value...]`: methods
    of configs/recipes.py (default: `methods`), or several of them joined by "+" (vlmx/combine.py), hyper-parameters of
    these, or shots, seeds (a number n for 1..n), protocols, root, model, or lr, one learning rate or several to be
    trained with side by side; `smoke` makes everything small. model,
    augment, methods, protocols: of this benchmark. published: {method: what its paper changes in its recipe for this
    benchmark}. data: further fields of config.data.
    """
    named, settings, smoke = parse(arg)
    methods = named or methods
    config = ConfigDict()
    config.title = name
    config.family = "classification"
    config.methods = methods
    config.protocols = protocols
    config.shots = 16  # training images a class, or several numbers of them, (1, 2, 4); -1: all of them
    n_seeds = min((recipes.SEEDS.get(m, 3) for m in methods), default=3)  # as published
    config.seeds = tuple(range(1, n_seeds + 1))

    config.data = ConfigDict()
    config.data.name = name
    config.data.root = ""  # where the data sets lie
    config.data.file = ""  # csv only: the table, if it is not `root`
    config.data.split_file = ""  # published benchmarks and folder: another split file in CoOp's format
    config.data.templates = ()  # instead of the data set's own
    config.data.classnames = ""  # a file with other class names
    config.data.augment = augment  # in training: "none" (features are stored) or "crop" (random crops and flips)
    config.data.crop_scale = (0.08, 1.0)  # part of the image's area that a random crop takes
    config.data.bad_images = "stop"  # or "skip": go on without unreadable images and count them in the report
    config.data.workers = 0  # processes that decode and augment; 0: threads of this one
    config.data.update(data)

    config.model = ConfigDict()
    config.model.name = model  # tiny_clip, ViT-B/16, RN50, ..., a hub id, a directory
    config.model.image_size = 0  # 0: the checkpoint's
    config.model.act = ""  # of a state dict without configuration: the activation, gelu or quick_gelu
    config.model.heads = ()  # of such: attention heads, of the image tower and of the text tower
    config.model.arch = ""  # of such, in place of act and heads: the name in OpenCLIP, ViT-B-32, ViT-B-32-quickgelu
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16
    config.model.param_dtype = "float32"  # of the frozen weights
    config.model.truncate = False  # cut texts that are too long instead of stopping
    config.model.remat = False  # recompute blocks in the backward pass: less memory, more time

    config.features = features()

    config.targets = ConfigDict()  # data sets that a protocol tests on, beside `data`; under the same root
    config.targets.cross_dataset = tuple(n for family in FAMILIES if name in family for n in family if n != name)
    config.targets.domain_generalization = SHIFTS.get(name, ())

    known = recipes.RECIPES | recipes.PARTS | recipes.ABLATIONS
    named = dict.fromkeys(one for m in methods for one in m.split("+"))
    named |= dict.fromkeys(recipes.PRIORS[m] for m in named if m in recipes.PRIORS)
    config.recipe = ConfigDict({m: known[m]() for m in named if m in known})
    published = recipes.published(name) | (published or {})
    for method in published.keys() & config.recipe.keys():
        config.recipe[method].update(published[method])
    config.reference = "zero_shot"  # the method whose accuracy is printed before anything is trained
    config.eval_batch = 256
    config.steps_per_call = 0  # of one compiled call, where features are stored; 0: as many as are worth it
    config.seeds_per_program = 0  # trainings that run at once; 0: all, or as many as fit into the memory
    config.checkpoint_every = 500  # steps
    config.checkpoint_keep = 2  # the last ones
    config.checkpoint_best = False  # end with each seed's best checkpoint on validation instead of with the last step
    config.nonfinite = "stop"  # at a loss or gradient that is not finite; or "skip" the step and count it
    config.mesh = ConfigDict({"seed": 1, "data": -1, "fsdp": 1, "tensor": 1})
    config.shardings = ()  # rules that go before those of vlmx/shard.py: ("model/.*/token_embed", "- fsdp"), ...

    if smoke:
        config.shots, config.seeds = 1, (1,)
        for recipe in config.recipe.values():
            for part in (recipe, *(recipe[p] for p in PROTOCOLS if p in recipe)):
                part.update({k: v for k, v in {"epochs": 2, "batch": 8, "views": 2}.items() if k in part})
    apply(config, settings)  # last: what a person sets holds
    return config


def features():
    """config.features: where those of frozen towers are kept for all later runs."""
    config = ConfigDict()
    config.dir = ""  # their folder; "": $XDG_CACHE_HOME/vlmx/features, or ~/.cache/vlmx/features; "off": none
    config.limit = 20.0  # GiB; beyond it those go first that were not read for the longest time
    return config


def parse(arg):
    """`coop,n_ctx=4` -> (("coop",), {"n_ctx": 4}, smoke)."""
    parts = [p for p in re.split(r",(?![^(\[]*[)\]])", arg or "") if p]  # not at the commas of a tuple
    methods = tuple(p for p in parts if "=" not in p and p != "smoke")
    settings = dict(p.split("=", 1) for p in parts if "=" in p)
    return methods, {k: literal(v) for k, v in settings.items()}, "smoke" in parts


def literal(text):
    """A number, a boolean, ... where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def apply(config, settings):
    """Set what stands behind the colon. UserError for a key that neither the config nor a method's recipe has."""
    hyper = sorted({k for recipe in config.recipe.values() for k in recipe.hyper})
    for key, value in settings.items():
        owners = [recipe for recipe in config.recipe.values() if key in recipe.hyper]
        if key == "seeds":
            if not isinstance(value, (tuple, list)):
                fields.refuse("seeds", value, SEEDS)
            config.seeds = tuple(value) if isinstance(value, (tuple, list)) else tuple(range(1, value + 1))
        elif key == "protocols":
            config.protocols = tuple(value) if isinstance(value, (tuple, list)) else tuple(str(value).split("+"))
        elif key == "lr":
            several = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            if not RATES.valid(several):
                raise UserError(f"--config ...:lr={value}: expected {RATES.expected}.")
            rates(config, several)
        elif key in ("root", "model"):
            (config.data if key == "root" else config.model).update({"root" if key == "root" else "name": str(value)})
        elif key == "shots":
            with config.ignore_type():
                config.shots = value
        elif owners:
            for recipe in owners:
                try:
                    recipe.hyper[key] = value
                except (TypeError, ValueError, OverflowError):
                    kind = type(recipe.hyper[key]).__name__
                    raise UserError(f"--config ...:{key}={value}: expected {kind}, got {value!r}.") from None
                for protocol in PROTOCOLS.keys() & recipe.keys():
                    kept = {k: v for k, v in recipe[protocol].items() if k not in recipe.hyper}
                    recipe[protocol] = ConfigDict(kept)  # what is asked for by name holds in every protocol
        else:
            raise unknown("setting behind the colon of --config", key, [*TOP, *hyper])


def rates(config, values):
    """Each method that takes gradient steps with each of these learning rates, of several under a name that says it.
    "a+b" is trained as a is, with one rate."""
    names = []
    for name in config.methods:
        first = name.partition("+")[0]
        recipe = config.recipe.get(first) or {}
        if "optimizer" not in recipe:
            names.append(name)
        elif len(values) == 1:
            recipe.optimizer.lr = float(values[0])
            names.append(name)
        elif first != name:
            raise UserError(f"--config ...:lr={values}: {name} is trained with one rate; got {len(values)}.")
        else:
            for value in values:
                one = recipe.copy_and_resolve_references()
                one.optimizer.lr = float(value)
                one.method = one.get("method", name)
                names.append(f"{name}_lr{value:g}".replace(".", "_"))
                config.recipe[names[-1]] = one
    if not any("optimizer" in (config.recipe.get(name.partition("+")[0]) or {}) for name in names):
        raise UserError(f"--config ...:lr={values[0]}: none of the methods takes gradient steps; leave it out.")
    config.methods = tuple(names)
