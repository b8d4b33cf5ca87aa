"""What each field of a config may be: one table of rules per family, checked before data or weights are read.

A table maps dotted names of fields to `Rule`s. `*` stands for any one name (a method, a task), a `?` at the end marks a
field that a config may leave out. A field without a rule is refused: nobody would read it.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from vlmx.errors import UserError, unknown

LARGEST = 2**31 - 1  # of the whole numbers that jax counts with
ACTIVATIONS = ("quick_gelu", "gelu")  # those of models/layers.py, which imports jax
FAMILIES = ("classification", "vl", "pretrain", "pretrain_text")


class Rule(NamedTuple):
    """What a field may be.

    expected: in words, for the error message.
    valid: value -> bool, for a value of any type.
    names: the valid values where they are a few names, for the nearest one in the error message.
    """

    expected: str
    valid: Callable
    names: tuple[str, ...] = ()


# -------------------------------------------------------------------- rules
def integer(least=0, most=LARGEST, also=()):
    """A whole number from `least` to `most`, or one of `also`; True and False are no numbers."""
    words = f"a whole number, at least {least:,}" + (f" and at most {most:,}" if most < LARGEST else "")
    words += "".join(f", or {n}" for n in also)
    return Rule(words, lambda x: _is_whole(x) and (least <= x <= most or x in also))


def _is_whole(x):
    return isinstance(x, int) and not isinstance(x, bool)


def number(least=0.0, most=math.inf, above=-math.inf, below=math.inf, also=()):
    """A finite number in a range, or one of `also`."""
    limits = [("at least", least, -math.inf), ("more than", above, -math.inf)]
    limits += [("at most", most, math.inf), ("less than", below, math.inf)]
    words = " and ".join(f"{word} {limit:g}" for word, limit, none in limits if limit != none)
    words = ", ".join(filter(None, ["a number", words])) + "".join(f", or {n:g}" for n in also)

    def valid(x):
        if type(x) is not int and not isinstance(x, float) or abs(x) > 1e300 or x != x:
            return False
        return least <= x <= most and above < x < below or x in also

    return Rule(words, valid)


def text(what="a text", empty=False):
    """A text; no file name and no json field has a null character."""
    return Rule(what, lambda x: isinstance(x, str) and "\0" not in x and (empty or bool(x.strip())))


def choice(*names):
    """One of a few texts."""
    return Rule(f"one of {', '.join(names)}", lambda x: isinstance(x, str) and x in names, names)


def several(rule, least=0, different=False, exactly=None):
    """A tuple or a list whose entries obey a rule; `different`: no two are equal; `exactly`: how many."""
    words = "a tuple" + (f" of {exactly}" if exactly else ", not empty" if least else "")
    words += f", {'different values, ' if different else ''}each {rule.expected}"

    def valid(x):
        if not isinstance(x, (tuple, list)) or len(x) < least or exactly not in (None, len(x)):
            return False
        return all(map(rule.valid, x)) and not (different and len(set(x)) < len(x))

    return Rule(words, valid, rule.names)


def pair(first, second):
    """Two values with a rule each."""

    def valid(x):
        return isinstance(x, (tuple, list)) and len(x) == 2 and first.valid(x[0]) and second.valid(x[1])

    return Rule(f"a pair ({first.expected}; {second.expected})", valid)


def either(*rules):
    """What one of the rules allows."""
    words = " or ".join(rule.expected for rule in rules)
    return Rule(words, lambda x: any(rule.valid(x) for rule in rules))


def _is_regex(x):
    try:
        return isinstance(x, str) and bool(re.compile(x))
    except (re.error, OverflowError, RecursionError):
        return False


def _is_quick_regex(x):
    """Whether a text is a regular expression whose time does not grow with powers of a name's length: no group that
    repeats, and few repetitions."""
    return _is_regex(x) and len(x) <= 1000 and not re.search(r"\)[*+{]", x) and len(re.findall(r"[*+{]", x)) <= 4


def _is_template(x):
    return isinstance(x, str) and "{}" in x and not re.search("[{}\0\ud800-\udfff]", x.replace("{}", "", 1))


def _is_range(x):
    return several(number(above=0, most=1), exactly=2).valid(x) and x[0] <= x[1]


GROUP = Rule("a group of fields", lambda x: isinstance(x, dict))
FLAG = Rule("True or False", lambda x: isinstance(x, bool))
NONE = Rule("None", lambda x: x is None)
EMPTY = Rule("''", lambda x: x == "")
NAME = text("a name, not empty")
PATH = text("a path, or '' for none", empty=True)
FOLDER = Rule(
    "a name for a folder, of less than 200 characters, without /",
    lambda x: NAME.valid(x) and not set(x) & set("/\\\n") and x not in (".", "..") and len(x) < 200,
)
REGEX = Rule("a regular expression", _is_regex)
PATTERN = Rule("a regular expression without groups that repeat", _is_quick_regex)
TEMPLATES = Rule(
    "a text or a tuple of texts, each with one {} for the class and no other brace, as in 'a photo of a {}.'",
    lambda x: isinstance(x, (str, tuple, list)) and all(map(_is_template, [x] if isinstance(x, str) else x)),
)
SEED = integer(0)
SIZE = integer(1, 65_536)  # of what a model holds: vectors, units, layers
WORKERS = integer(0, 1024)
SHARE = number(0, 1)
RATE = number(0, below=1)  # of dropout, of a moving average
POSITIVE = number(-math.inf, above=0)
SHOTS = integer(1, also=(-1,))
DTYPE = choice("float32", "bfloat16")
NONFINITE = choice("stop", "skip")
AXIS = integer(1, also=(-1,))
DURATION = Rule(
    "a number of steps, or a text as '2 epochs', '500 steps', '10 percent'",
    lambda x: (
        integer(0).valid(x) or isinstance(x, str) and bool(re.fullmatch(r"\d+(\.\d+)? *((epoch|step|percent)s?|%)?", x))
    ),
)
NORMS = several(choice("pre", "post"), different=True)

# Hyper-parameters of the package's methods and variants, by name: the arguments of their `make`. `method.build` refuses
# others for Python and checkpoints too.
HYPER = {
    **dict.fromkeys(("n_ctx", "depth", "reduction", "hidden", "embed", "middle", "q", "n"), SIZE),
    **dict.fromkeys(("n_ctx_text", "n_ctx_vision", "depth_text", "depth_vision"), integer(0, 65_536)),
    **dict.fromkeys(("decoder_length", "k"), integer(0, 65_536)),
    **dict.fromkeys(("microbatch", "max_iter"), integer(1)),
    "teacher_templates": integer(1, 60),  # as many as methods/promptsrc.py has
    **dict.fromkeys(("alpha", "beta", "scale", "lam", "hard_scale", "text_weight", "image_weight"), number()),
    **dict.fromkeys(("gpa_mean", "threshold"), number()),
    **dict.fromkeys(("csc", "train_keys", "mask_self", "cross", "one_net"), FLAG),
    **dict.fromkeys(("class_token_position", "templates", "text_cache", "adapt_gamma", "towers", "source"), NAME),
    **dict.fromkeys(("tasks", "rule", "template"), NAME),
    "position": either(NAME, several(integer(0, 65_536), least=1)),
    "length": SIZE,
    "rank": SIZE,
    "ratio": SHARE,
    "gamma": SHARE,
    "dropout": RATE,
    "gpa_std": number(1e-6),
    "ctx_init": text(empty=True),
    "maps": text(empty=True),
    "norms": NORMS,
    "trains": several(PATTERN),
    "search_scale": several(POSITIVE, exactly=2),
    "search_step": several(integer(0, 100_000), exactly=2),
    "options": Rule("the hyper-parameters of `source`, by name", lambda x: isinstance(x, dict) and _obey(x, HYPER)),
}


def _obey(values, rules):
    """Whether values by name obey rules by name, and there is a rule for each."""
    return all(key in rules and rules[key].valid(value) for key, value in values.items())


# -------------------------------------------------------------------- parts of the tables
def _under(name, table):
    """The table for fields one level down: {"name.field": rule}."""
    return {f"{name}.{field}": rule for field, rule in table.items()}


MOMENTS = {"b1?": RATE, "b2?": RATE, "eps?": POSITIVE}
RULE_OF_GROUP = {"lr": number(), "wd": number(), "momentum": RATE, "rho": SHARE}
RULE_OF_GROUP |= {"b1": RATE, "b2": RATE, "eps": POSITIVE}
OPTIMIZER = {
    "name?": choice("sgd", "adadelta", "adam", "adamw"),
    "lr?": number(),
    "wd?": number(),
    "momentum?": RATE,
    "rho?": SHARE,
    **MOMENTS,
    "clip?": number(),
    "groups?": several(
        pair(REGEX, Rule("options, or False", lambda x: x is False or isinstance(x, dict) and _obey(x, RULE_OF_GROUP)))
    ),
    "schedule.name?": choice("dassl", "cosine", "constant"),
    "schedule.warmup?": DURATION,
    "schedule.kind?": choice("constant", "linear"),
    "schedule.first?": number(),
    "schedule.end?": number(),
    "schedule.recount?": FLAG,
    "schedule.every?": either(integer(1), NONE),
    "schedule.at?": either(several(integer(0)), NONE),
    "schedule.gamma?": POSITIVE,
}
TRAINING = {
    **_under("optimizer", OPTIMIZER),
    "batch?": integer(1),
    "epochs?": integer(0),
    "epochs_by_shots?": several(pair(integer(1), integer(0))),
    "steps_per_shot?": integer(0),
    "views?": integer(0, 10_000),
}
COMPUTATION = {"dtype": DTYPE, "param_dtype": DTYPE}
FEATURES = _under("features", {"dir": PATH, "limit": POSITIVE._replace(expected="GiB, a number more than 0")})
RUN = {
    "title": FOLDER,
    "family": choice(*FAMILIES),
    "methods": several(NAME, least=1, different=True),
    "eval_batch": integer(1, 65_536),  # the last batch is filled up to as many rows
    "checkpoint_every": integer(1),
    "checkpoint_keep": integer(1),
    "nonfinite": NONFINITE,
    **_under("mesh", dict.fromkeys(("seed?", "data?", "fsdp?", "tensor?"), AXIS)),
    "shardings": several(pair(REGEX, text("a layout, as in '- fsdp'", empty=True))),
    **FEATURES,
}
BACKBONE = {"name": NAME, **COMPUTATION, "remat": FLAG}
CLIP = {  # what some files of a CLIP do not state
    "act": either(choice(*ACTIVATIONS), EMPTY),
    "heads": Rule(
        "the numbers of attention heads of the image tower and the text tower, as in (12,8), or ()",
        lambda x: several(SIZE, exactly=2).valid(x) or several(SIZE, exactly=0).valid(x),
    ),
    "arch": text("a name in OpenCLIP, or ''", empty=True),
}
PROTOCOLS = ("few_shot", "base_to_new", "cross_dataset", "domain_generalization")

# -------------------------------------------------------------------- the tables
CLASSIFICATION = {
    **RUN,
    "protocols": several(choice(*PROTOCOLS), least=1, different=True),
    "shots": either(SHOTS, several(SHOTS, least=1, different=True))._replace(
        expected="a positive number of images a class, or -1 for all, or a tuple of different ones, as in (1, 2, 4)"
    ),
    "seeds": several(SEED, least=1, different=True)._replace(
        expected="a tuple of different numbers, at least one, each whole and at least 0, as in (1, 2, 3)"
    ),
    "data.name": NAME,
    "data.root": PATH,
    "data.file": PATH,
    "data.split_file": PATH,
    "data.templates": TEMPLATES,
    "data.classnames": PATH,
    "data.augment": choice("none", "crop"),
    "data.crop_scale": Rule("two shares of the image's area, 0 < least <= most <= 1", _is_range),
    "data.bad_images": choice("stop", "skip"),
    "data.workers": WORKERS,
    **_under("model", BACKBONE | CLIP),
    "model.image_size": integer(0, 8192),
    "model.truncate": FLAG,
    **_under("targets", dict.fromkeys(PROTOCOLS[2:], several(NAME, different=True))),
    "reference": NAME,
    "steps_per_call": integer(0),
    "seeds_per_program": integer(0),
    "checkpoint_best": FLAG,
    "recipe.*.method?": NAME,
    "recipe.*.hyper": GROUP,
    **_under("recipe.*.hyper", {f"{name}?": rule for name, rule in HYPER.items()}),
    **_under("recipe.*", TRAINING),
}
# What a recipe replaces in a protocol: hyper-parameters, or its other fields.
for _name in PROTOCOLS:
    CLASSIFICATION |= _under(f"recipe.*.{_name}", {f"{name}?": rule for name, rule in HYPER.items()} | TRAINING)

VL = {
    **RUN,
    "protocols?": several(NAME, exactly=0)._replace(expected="an empty tuple"),
    "seed": SEED,
    "tasks": several(NAME, least=1, different=True),
    "data.root?": PATH,
    "data.features?": either(PATH, several(NAME)),
    "data.pictures?": PATH,
    "data.bad?": choice("stop", "skip"),
    "data.java?": FLAG,
    "data.hidden?": several(choice("vqa", "tvqa", "how2qa", "tvc", "yc2c"), different=True),
    "data.length?": integer(0, 65_536),
    "data.target_length?": integer(0, 65_536),
    # Arguments of single readers, each of which refuses those that it does not have.
    "data.options.*.train?": several(NAME, least=1, different=True),
    "data.options.*.split?": NAME,
    "data.options.*.least?": either(integer(1), NONE),
    "data.options.*.min_score?": SHARE,
    "data.options.*.bad?": choice("stop", "skip"),
    "data.options.*.java?": FLAG,
    "data.scenes?": number(0, 100),
    **_under("data.scenes", {"train?": integer(1), "val?": integer(0), "test?": integer(0)}),
    "data.questions?": integer(1, 1000),
    "data.workers": WORKERS,
    **_under("tower", {"name": NAME, "what": choice("grid", "pooled"), **COMPUTATION, **CLIP}),
    **_under("model", BACKBONE),
    "model.start": PATH,
    "model.visual_tokens": integer(0, 65_536),
    "model.dropout": number(0, below=1, also=(-1.0,)),
    "batch": integer(1),
    "batches.*?": integer(1),
    "temperature": number(0.1),
    "steps_per_call": integer(1),
    "recipe.single_compacter.hyper.rank?": either(SIZE, NONE),
    "recipe.multiple_compacters.hyper.rank?": either(SIZE, NONE),
    "recipe.*.hyper": GROUP,
    **_under("recipe.*.hyper", {f"{name}?": rule for name, rule in HYPER.items()}),
    "recipe.*.warmup": DURATION,
    "recipe.*.epochs": POSITIVE,
    **_under("recipe.*.optimizer", {"lr": number(), "wd?": number(), **MOMENTS, "clip?": POSITIVE}),
}

LOGGED = {"seed": SEED, **dict.fromkeys(("batch", "steps", "log_every", "checkpoint_every"), integer(1))}
LOGGED |= {"title": FOLDER, "family": choice(*FAMILIES), **_under("optimizer", OPTIMIZER)}
TOWER = {"width": SIZE, "layers": SIZE, "heads": SIZE}
PRETRAIN = {
    **LOGGED,
    "data.views": integer(1),
    "data.captions": integer(1, 1000),
    "data.shares": Rule(
        "two shares, in all at most 1", lambda x: several(SHARE, exactly=2).valid(x) and x[0] + x[1] <= 1
    ),
    "data.length": integer(3, 65_536),
    "data.seed": SEED,
    "data.workers": WORKERS,
    **_under("vision", TOWER),
    "vision.patch": Rule("a divisor of 64, the side of the pictures", lambda x: SIZE.valid(x) and 64 % x == 0),
    **_under("text", TOWER),
    "text.context": integer(3, 65_536),
    "text.vocab": integer(514),  # all bytes, alone and at the end of a word, and two marks
    "embed_dim": SIZE,
    "first": integer(0),
}
PRETRAIN_TEXT = {
    **LOGGED,
    "kind": choice("t5", "bart"),
    "data.texts": integer(1),
    "data.readings": integer(1),
    "data.held_out": integer(64),  # so many at once are generated
    "data.length": integer(3, 512),
    "data.target_length": integer(3, 512),
    "data.seed": SEED,
    "data.workers": WORKERS,
    "noise.density": number(-math.inf, above=0, below=1),
    "noise.mean": number(1),
    **TOWER,
    "vocab": integer(320),  # letters and special tokens of both kinds
    "dropout": RATE,
}
TABLES = {"classification": CLASSIFICATION, "vl": VL, "pretrain": PRETRAIN, "pretrain_text": PRETRAIN_TEXT}


# -------------------------------------------------------------------- the check
def check(config):
    """Check every field of a config by the table of its family.

    Args:
        config: a ConfigDict.

    Raises:
        UserError: the name of the field, what was expected and what it is; or a field that is missing, or that no
            run reads.
    """
    values = config.to_dict()
    refuse("family", values.get("family"), RUN["family"])
    table = TABLES[values["family"]]
    _check_below((), values, [(field.rstrip("?").split("."), rule, "?" not in field) for field, rule in table.items()])


def check_top(config, *names):
    """Check fields that every family has, before it is known which one a config is of."""
    for name in names:
        refuse(name, config.get(name), RUN[name])


def refuse(field, value, rule):
    """Raise a UserError with the name of a field whose value does not obey its rule."""
    if rule.valid(value):
        return
    entries = [value] if isinstance(value, str) else value if isinstance(value, (tuple, list)) else ()
    if odd := [x for x in entries if rule.names and isinstance(x, str) and x not in rule.names]:
        raise unknown(f"value of config.{field}", odd[0], rule.names)
    large = any(type(x) is int and x > LARGEST for x in (entries or [value]))
    most = f", at most {LARGEST:,}" if large else ""
    raise UserError(f"config.{field}: expected {rule.expected}{most}; got {_shortened(value)}.")


def _shortened(value):
    try:
        shown = repr(value)
    except Exception as e:  # a class of the person's own, or a number with more digits than Python writes
        shown = f"a {type(value).__name__} that cannot be shown ({type(e).__name__})"
    return _cut(shown)


def _cut(text):
    return text if len(text) <= 200 else text[:200] + " ..."


def _check_below(path, value, rules):
    """Check a field, or all fields of a group; rules: (pattern, Rule, whether it has to be there), below `path`."""
    depth, field = len(path), ".".join(path)
    rule = next((rule for pattern, rule, _ in rules if len(pattern) == depth), None)
    names = {pattern[depth] for pattern, *_ in rules if len(pattern) > depth}
    if not (isinstance(value, dict) and names and (rule is None or value)):
        if rule is None:
            raise UserError(f"config.{field}: expected a group of fields; got {_shortened(value)}.")
        return refuse(field, value, rule)
    for pattern, rule, needed in rules:
        if needed and pattern[depth:] and pattern[depth] not in ("*", *value):
            missing = ".".join((*path, *pattern[depth:]))
            raise UserError(f"config.{missing} is missing: expected {rule.expected}.")
    from_outside = path[:1] == ("recipe",) and depth == 2 and "." in str(value.get("method"))
    for name, one in value.items():
        if from_outside and name in ("hyper", *PROTOCOLS):
            continue  # its own `make` knows its hyper-parameters
        name = str(name)
        below = [entry for entry in rules if len(entry[0]) > depth and entry[0][depth] in ("*", name)]
        if not below:
            raise unknown(f"field config.{'.'.join((*path, name))}:", name, names)
        _check_below((*path, name), one, below)


# -------------------------------------------------------------------- the command line
def pairs(argv):
    """Return (name, value) of each flag; the value is what stands behind = or, without one, the next word."""
    parts = [arg.lstrip("-").partition("=") for arg in argv]
    return [
        (name, value if equals else after)
        for arg, (name, equals, value), after in zip(argv, parts, [*argv[1:], ""])
        if arg.startswith("-")
    ]


def set_fields(config, argv):
    """Set the fields of a config that a command line names, as --config.recipe.coop.epochs=50, in place.

    Raises:
        UserError: the config has no such field, or it cannot be this.
    """
    check_names(config, argv)
    values, argv = flags.FlagValues(), ["", *argv]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=argv)
    parse(values, argv, config)


def check_names(config, argv):
    """Raise a UserError for a --config.<field> that the config does not have, naming the nearest, or that cannot be set
    alone."""
    for name, value in pairs(argv):
        node, path = config, name.removeprefix("config.")
        for field in path.split(".") if path != name else ():
            field, entry, _ = field.partition("[")
            if field not in node:
                raise unknown(f"field config.{path}:", field, node.keys())
            if entry:
                raise UserError(f"--config.{path}={value}: an entry alone cannot be set; set all of {field}.")
            node = node[field] if isinstance(node[field], ConfigDict) else {}
        if path == "seeds" and value.strip().isdigit():  # behind the colon a number says how many
            raise UserError(
                f"--config.seeds={value}: is it how many, or the seed itself? For {value} seeds, 1 to {value}, write "
                f"seeds={value} behind the colon, as in --config configs/digits.py:coop,seeds={value}; for the seed "
                f"{value} alone --config.seeds='({value},)'; for several --config.seeds='(1, 2, 3)'."
            )


def parse(values, argv, config=None):
    """Return the words of a command line that are no flags; `values`, absl's FlagValues, hold the others then.

    Raises:
        UserError: what absl and ml_collections say in their own words, or in a traceback.
    """
    try:
        return values(argv)
    except flags.UnrecognizedFlagError as e:
        if e.flagname.startswith("config."):
            raise UserError(f"--{e.flagname}: expected behind --config, as in --config configs/digits.py.") from e
        own = values.get_flags_for_module(values.find_module_defining_flag("config"))
        raise unknown("flag", f"--{e.flagname}", [f"--{flag.name}" for flag in own if "." not in flag.name]) from e
    except flags.IllegalFlagValueError as e:
        name = str(e).removeprefix("flag --").partition("=")[0]
        value = next((value for other, value in pairs(argv) if other == name), "")
        raise UserError(f"--{name}={_cut(value)}: expected {_expected(values[name], config, value)}.") from e
    except (flags.Error, ValueError) as e:
        missing = str(e).removeprefix("Missing value for flag ")
        raise UserError(f"{missing}: expected a value, as in {missing}=VALUE" if missing != str(e) else str(e)) from e


def _expected(flag, config, value):
    """What a flag, or a field of the config, can be, in words; `value`: the text that it cannot be."""
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kind = kinds.get(flag.flag_type(), "another value")
    path = flag.name.removeprefix("config.").split(".")
    if not flag.name.startswith("config."):
        return kind
    if flag.name == "config.shots":
        return "a whole number; several behind the colon, as in --config configs/digits.py:coop,shots=(1,2,4)"
    for pattern, rule in TABLES.get(config.get("family"), {}).items():
        names = pattern.rstrip("?").split(".")
        if len(names) == len(path) and all(one in ("*", other) for one, other in zip(names, path)) and rule != GROUP:
            return kind if rule.valid(value) else rule.expected  # a valid text, where this config has a number
    return f"a field of this group, as --{flag.name}.<name of the field>=VALUE"
