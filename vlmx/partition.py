"""Ordered rules over the paths of a parameter tree: who is trained, and in which group.

A rule is `(regex, value)`. The regex has to match a leaf's whole path, "/"-joined ("blocks/attn/q/kernel"); the first
rule that matches decides. A rule that never decides and a leaf that no rule matches are errors: a misspelt rule must
not pass in silence.
"""

import math
import re

import jax

from vlmx.errors import UserError


def paths(tree):
    """The "/"-joined path of each leaf, in flattening order -> list of str."""
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


def match(tree, rules, defaults=()):
    """Which rule decides each leaf.

    Args: tree: any pytree of arrays (or of shapes). rules: sequence of (regex, value). defaults: rules that come behind
    them and may decide nothing.
    Returns: (a tree of the same structure with the number of the rule, a readable summary: a line per rule).
    Raises: UserError for a bad regex, a rule that decides nothing, leaves that no rule matches.
    """
    names, every = paths(tree), compiled([*rules, *defaults])
    numbers = [next((i for i, (regex, _) in enumerate(every) if regex.fullmatch(name)), None) for name in names]
    orphans = [name for name, number in zip(names, numbers) if number is None]
    if orphans:
        raise UserError(f"no rule matches {_few(orphans)}; rules: {_few([r for r, _ in rules])}. End with ('.*', ...).")
    lines = []
    for i, (regex, value) in enumerate(rules):
        mine = [name for name, number in zip(names, numbers) if number == i]
        if not mine:
            raise UserError(
                f"rule {regex!r} decides no parameter: nothing matches it, or earlier rules took all that does. "
                f"Parameters: {_few(names)}."
            )
        lines.append(f"{regex} -> {value}: {_few(mine)}")
    return jax.tree.unflatten(jax.tree.structure(tree), numbers), "\n".join(lines)


def split(tree, rules):
    """Take a tree apart by rules whose values are True (trained) or False (frozen).

    Returns: (trained, frozen): the same nested containers, with None where the leaf is in the other part. None is no
    leaf to jax, so gradients and optimiser states of `trained` hold nothing of the frozen part.
    """
    numbers, _ = match(tree, rules)
    trained = jax.tree.map(lambda leaf, i: leaf if rules[i][1] else None, tree, numbers)
    frozen = jax.tree.map(lambda leaf, i: None if rules[i][1] else leaf, tree, numbers)
    return trained, frozen


def merge(a, b):
    """The whole tree from the two parts of `split`, in any order."""
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def count(tree):
    """How many numbers a tree of arrays (or of shapes) holds -> int."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def compiled(rules):
    """The rules with their regular expressions compiled; UserError for one that is none."""
    return [(_compile(regex), value) for regex, value in rules]


def _compile(regex):
    try:
        return re.compile(regex)
    except re.error as e:
        raise UserError(f"rule {regex!r} is not a regular expression: {e}") from e


def _few(names, n=8):
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
