"""What the report draws: bars and matrices as rows for the page's own HTML, curves as SVG, a large matrix as a PNG.

Everything stands in the page itself, in its ink and font; matplotlib without pyplot, so no global state.
"""

import base64
import io
import math
import os
import textwrap

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from vlmx import chips, tables

INK = "#010203"  # drawn with this and replaced by currentColor, so that one drawing serves light and dark pages
POINTS = 300  # more steps than this are averaged in bins: the eye sees no more, and the page stays small
PARTS = {"all": "all classes", "base": "base classes", "new": "new classes"}
COLOURS = ("#3b7dd8", "#d9822b", "#2a9d74", "#b5509c", "#7a6fd0", "#a08a1c", "#c94f4f", "#4a9fb5")
COLOURS += ("#7d5a3c", "#8fae2d", "#e58ab4", "#6b7785", "#23507f", "#e3b93f")
MANY = 25  # more classes than this: a picture and a list instead of a table, the hardest classes instead of all
HARDEST = 15
UNDRAWN = {"step", "seeds", "lr", "grad_norm"}  # for these there is TensorBoard


def largest(runs, run_names):
    """[(name, run)]: of runs that differ only in shots, the one with the most; the page would be long otherwise."""
    best = {}
    for name, run in zip(run_names, runs):
        key = name, run.get("protocol")
        if key not in best or tables.size(run.get("shots") or 0) >= tables.size(best[key][1].get("shots") or 0):
            best[key] = name, run
    return list(best.values())


def per_class(shown, colours):
    """Accuracy of each class, averaged over seeds: one chart per part, the methods side by side."""
    found = []
    for part, title in PARTS.items():
        methods, classes = [], {}
        for name, run in shown:
            seeds = [seed["per_class"] for seed in run.get("seeds") or [] if part in (seed.get("per_class") or {})]
            seeds = [seed[part] for seed in seeds]
            if not seeds:
                continue
            for label in seeds[0]:
                values = [seed[label] for seed in seeds if seed.get(label) is not None and math.isfinite(seed[label])]
                classes.setdefault(label, {})[name] = float(np.mean(values)) if values else None
            methods.append({"name": name, "colour": colours[name]})
        rows = [{"name": k, "values": [(m, v.get(m["name"])) for m in methods]} for k, v in classes.items()]
        many = len(rows) > MANY
        if many:
            rows.sort(key=lambda row: np.mean([v for _, v in row["values"] if v is not None] or [101]))
        if rows:
            part_rows = {"rows": rows[:HARDEST], "all": rows} if many else {"rows": rows, "all": None}
            found.append({"title": title, "methods": methods, **part_rows})
    return found


def confusions(shown, classnames):
    """A matrix per run and part, summed over seeds: a table of counts or, for many classes, a picture."""
    result = []
    for name, run in shown:
        for part, title in PARTS.items():
            seeds = [seed for seed in run.get("seeds") or [] if part in (seed.get("confusion") or {})]
            if not seeds:
                continue
            matrix = np.sum([seed["confusion"][part] for seed in seeds], axis=0)
            own = list((seeds[0].get("per_class") or {}).get(part) or ())
            numbers = [str(i) for i in range(len(matrix))]
            labels = next(labels for labels in (own, classnames, numbers) if len(labels) == len(matrix))
            big = len(matrix) > MANY
            share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
            order = np.argsort(-wrong, axis=None, kind="stable")[: 12 if big else 4]
            top = [
                (labels[t], labels[s], int(matrix[t, s]), f"{100 * share[t, s]:.0f}\u00a0%")
                for t, s in zip(*np.unravel_index(order, matrix.shape))
                if wrong[t, s]
            ]
            named = [str(seed["seed"]) for seed in seeds if seed.get("seed") is not None]
            folded = part != "all" and any(r["name"] == name and r["part"] == PARTS["all"] for r in result)
            result.append(
                {
                    "name": name,
                    "part": title,
                    "seeds": f"seed{'s' * (len(named) > 1)} {', '.join(named)}" if named else "",
                    "folded": folded,
                    "labels": labels,
                    "top": top,
                    "image": heat_map(share) if big else None,
                    "rows": None if big else list(zip(labels, matrix.tolist(), share.tolist())),
                }
            )
    return result


def curves(sources, colours):
    """An SVG per run and metric: the mean over seeds as a line, each seed faint behind it.

    `sources`: [(name, run)], where a run may hold "curve": {"step": [n], metric: [n] or [n][seeds], None for no value}.
    """
    sources = [(name, run) for name, run in sources if run.get("curve")]
    several = len({run.get("shots") for _, run in sources}) > 1
    drawn = []
    for name, run in sources:
        curve, steps = run["curve"], run["curve"].get("step") or []
        for metric in sorted(curve.keys() - UNDRAWN, key=lambda key: (key != "loss", key)):
            values = np.array(curve[metric], np.float64).reshape(len(curve[metric]), -1)  # None becomes NaN
            if len(steps) < 2 or len(values) != len(steps) or not np.isfinite(values).any():
                continue
            shots = f"{run['shots']} shots" if several and run.get("shots") else ""
            label, colour = metric.replace("_", " "), colours.get(name, COLOURS[0])
            where = " · ".join(filter(None, [(run.get("protocol") or "").replace("_", "-"), shots]))
            svg = lines(steps, values, colour, label, salt=f"c{len(drawn)}")
            drawn.append({"name": name, "where": where, "metric": label, "seeds": values.shape[1], "svg": svg})
    return drawn


def lines(steps, values, colour, ylabel, salt):
    """Inline SVG of `values` [steps, seeds]: mean as a line, seeds faint. `salt` keeps apart the ids of one page."""
    steps, values = np.asarray(steps, np.float64), np.ma.masked_invalid(values)
    bins = np.array_split(np.arange(len(steps)), min(len(steps), POINTS))
    steps = np.array([steps[b].mean() for b in bins])
    values = np.ma.stack([values[b].mean(axis=0) for b in bins])

    def draw(axes):
        if values.shape[1] > 1:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.45)
        axes.plot(steps, values.mean(axis=1), color=colour, linewidth=1.8)
        axes.locator_params(nbins=6)
        axes.margins(x=0.01)

    return _svg(draw, "step", ylabel, salt)


def by_task(runs, tasks, colours):
    """[(task, inline SVG)]: the loss of each task while the variants train, a line each; without those of fewer than
    two steps."""
    drawn = []
    for task in tasks:
        found = []
        for run in runs:
            steps, values = run["curve"].get("step") or [], run["curve"].get(f"loss_{task}") or []
            rows = [(s, v[0]) for s, v in zip(steps, values) if v[0] is not None]
            if len(rows) > 1:
                bins = np.array_split(np.array(rows, np.float64), min(len(rows), POINTS // 3))
                found.append((run["method"], np.array([b.mean(axis=0) for b in bins])))

        def draw(axes, found=found):
            for method, line in found:
                axes.plot(*line.T, color=colours[method], linewidth=1.5)
            axes.locator_params(nbins=6)
            axes.margins(x=0.01)

        if found:
            drawn.append((task, _svg(draw, "step", "loss", salt=f"task{len(drawn)}")))
    return drawn


def few_shot(table, colours, salt):
    """Inline SVG of a few_shot table (vlmx/tables.py): accuracy over shots, a line with error bars for each method."""
    return _svg(lambda axes: few_shot_lines(axes, table, colours), "training images a class", "accuracy", salt)


def few_shot_lines(axes, table, colours):
    """Draw a few_shot table."""
    ticks = dict(zip(table.columns, table.shots))
    for i, row in enumerate(table.ours()):
        points = [(i, row.figures[c]) for i, c in enumerate(ticks) if tables.is_finite(row.figures[c].get("mean"))]
        at, means, bars = [x for x, _ in points], [f["mean"] for _, f in points], [f["stderr"] for _, f in points]
        flat = row.trained == (0,) and len(means) > 1 and len(set(means)) == 1
        style = {"color": colours[row.name], "linewidth": 1.4, "linestyle": "--" if flat else "-", "label": row.name}
        marker = "" if flat else "os^Dv"[i // len(COLOURS) % 5]  # where there are more methods than colours
        axes.errorbar(at, means, [b or 0 for b in bars], **style, marker=marker, markersize=3.5, capsize=2)
    axes.set_xticks(range(len(ticks)), ["all" if n == -1 else str(n) for n in ticks.values()])


def few_shot_picture(several, colours):
    """PNG of several few_shot tables side by side, with a legend: to be shown elsewhere than on the page."""
    figure = Figure(figsize=(4.2 * len(several), 3.9), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(several), squeeze=False)[0], several):
        few_shot_lines(axes, table, colours)
        axes.set_title(table.where, fontsize=9)
        axes.set_xlabel("training images a class")
        axes.grid(alpha=0.15, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    axes = figure.axes[0]
    axes.set_ylabel("accuracy, per cent")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


AGAINST = {"distance": "mean distance from the classes trained on", "difficulty": "relative transfer difficulty"}


def alpha(parts, against, salt):
    """Inline SVG of `alpha_dots`."""
    return _svg(lambda axes: alpha_dots(axes, parts, against), AGAINST[against], "alpha", salt)


def alpha_dots(axes, parts, against, names=False):
    """Draw alpha of each class, a dot, and of each part of the test, a diamond at the means, against a key of AGAINST.
    `parts`: a run's "adaptation". names: beside the dots."""
    for i, (part, a) in enumerate(parts.items()):
        values, style = np.array(a["alpha"]), {"color": COLOURS[i % len(COLOURS)]}
        if against == "distance":
            x, whole = np.array(a["diff_avg"]), np.mean(a["diff_avg"])
        else:  # a class of which no image is right has no difficulty, and is left out
            accuracy = np.array(a["per_class"], np.float64)
            x = 100 / len(values) / np.where(accuracy > 0, accuracy, np.nan)
            whole = np.nan if a["difficulty"] is None else a["difficulty"]
        axes.scatter(x, values, s=22, alpha=0.6, linewidths=0, **style)
        axes.scatter([whole], [values.mean()], s=60, marker="D", label=PARTS.get(part, part), **style)
        for rank, c in enumerate(np.argsort(x) if names else ()):
            if np.isfinite(x[c]):  # in turn above and below: neighbours' names would lie on each other
                at, offset = (x[c], values[c]), (0, 5 if rank % 2 else -11)
                text = {"ha": "center", "fontsize": 7, "parse_math": False}
                axes.annotate(a["classes"][c], at, offset, textcoords="offset points", **text)
    axes.set_ylim(-0.03, 1.06)
    axes.legend(fontsize=8, frameon=False)


def gallery(pictures, captions, columns=8):
    """Figure of pictures (paths, PIL images or uint8 arrays) in rows of `columns`, a caption over each, in lines that
    fit."""
    wrapped = ["\n".join(textwrap.fill(line, 20) for line in caption.split("\n")) for caption in captions]
    rows, lines = -(-len(pictures) // columns), max(caption.count("\n") + 1 for caption in wrapped)
    figure = Figure(figsize=(1.3 * columns, (1.3 + 0.16 * lines) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.axis("off")
    for one, picture, caption in zip(axes, pictures, wrapped):
        image = Image.open(picture).convert("RGB") if isinstance(picture, (str, os.PathLike)) else picture
        one.imshow(image, cmap="gray", vmin=0, vmax=255)
        one.set_title(caption, fontsize=8, parse_math=False)
    return figure


def alpha_of_tests(cells, colours, salt):
    """Inline SVG of the cells of a sweep with the adaptive ensemble: mean alpha of each test against its difficulty."""

    def draw(axes):
        for cell in cells:
            for part, a in cell["adaptation"].items():
                if a["difficulty"] is not None:
                    at = a["difficulty"], a["alpha"]
                    axes.scatter(*at, s=24, color=colours[cell["method"]])
                    text = f"{cell['benchmark']}, {part}"
                    axes.annotate(text, at, (4, 3), textcoords="offset points", fontsize=7, parse_math=False)
        axes.set_ylim(-0.03, 1.06)
        axes.margins(x=0.25)

    return _svg(draw, "relative transfer difficulty", "mean alpha", salt)


def memory(plans):
    """Inline SVG of plans (vlmx/plan.py): what takes a chip's memory, a stacked bar for each, and what it has."""
    parts = list(dict.fromkeys(part for plan in plans for part in plan["memory"]))

    def draw(axes):
        at, left = np.arange(len(plans))[::-1], np.zeros(len(plans))
        for part, colour in zip(parts, COLOURS):
            gib = np.array([max(plan["memory"].get(part, 0), 0) / 2**30 for plan in plans])
            axes.barh(at, gib, 0.7, left, color=colour, label=part)
            left += gib
        for y, plan in zip(at, plans):
            if plan["limit"]:
                axes.plot([plan["limit"] / 2**30] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=1.5)
        axes.set_yticks(at, [f"{plan['step']}, {plan['topology']}" for plan in plans], fontsize=8)
        axes.set_ylim(-0.6, len(plans) - 0.4)
        axes.figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=3)

    return _svg(draw, "GiB a chip; a line where its memory ends", "", "memory", (7.5, 1.6 + 0.24 * len(plans)))


def roofline(plans):
    """Inline SVG of plans: operations a second that a chip reaches at best, against operations for each byte of its
    memory; the roof of each kind of chip, and on or under it every step."""
    kinds = list(dict.fromkeys(plan["topology"].partition(":")[0] for plan in plans if "seconds" in plan))
    steps = list(dict.fromkeys(plan["step"] for plan in plans if "seconds" in plan))
    shown = [plan for plan in plans if plan.get("bytes") and plan.get("flops") and "seconds" in plan]
    x = np.geomspace(min([10, *(plan["passes"] / plan["bytes"] for plan in shown)]), 1e4, 200)

    def draw(axes):
        for kind, colour in zip(kinds, COLOURS):
            chip = chips.CHIPS[kind]
            axes.plot(x, np.minimum(chip.flops, x * chip.bandwidth) / 1e12, color=colour, linewidth=1.2, label=kind)
        for plan in shown:
            kind = plan["topology"].partition(":")[0]
            at = plan["passes"] / plan["bytes"], plan["passes"] / plan["step_seconds"] / 1e12
            axes.scatter(*at, s=14, color=COLOURS[kinds.index(kind) % len(COLOURS)])
            axes.annotate(str(1 + steps.index(plan["step"])), at, (2, -8), textcoords="offset points", fontsize=6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([], [], " ", label="\n".join(f"{i} {name}" for i, name in enumerate(steps, 1)))
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    size = (7.5, max(3.2, 0.6 + 0.16 * (len(steps) + len(kinds))))
    return _svg(draw, "operations a byte of memory", "TFLOP/s a chip, at best", "roofline", size)


def alone(svg):
    """An inline SVG as a file of its own, black on white."""
    return str(svg).replace("currentColor", "#222").replace("<svg", '<svg style="background:#fff"', 1) + "\n"


def _svg(draw, xlabel, ylabel, salt, size=(4.4, 2.5)):
    """Inline SVG of what `draw(axes)` draws."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        "font.size": 9,
        "axes.linewidth": 0.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel, parse_math=False)
        axes.grid(color=INK, alpha=0.12, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the same curve gives the same bytes
        figure.savefig(text, format="svg", transparent=True, metadata=unsaid)
    svg = text.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor"))


def heat_map(share):
    """Data URI of a PNG, a pixel per cell of `share` [C, C] in 0..1: blue where right, orange where wrong."""
    right = np.eye(len(share), dtype=bool)
    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[..., :3] = np.where(right[..., None], (59, 125, 216), (217, 100, 30))
    pixels[..., 3] = np.round(255 * np.where(right, share, np.sqrt(share)))  # the root: a 4 % confusion must be seen
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
