"""The cells of a sweep as tables in the papers' layout: rows are methods, columns what a protocol measures.

A cell is a dict: "run" (the folder), "benchmark", "backbone", "protocol", "shots", "method", and either "failed" (why;
"" where it has not run yet) or what was measured: "summary", "seeds", "trained_params", "trained_percent", "seconds".
"""

import csv
import functools
import io
import itertools
import json
from importlib import resources
from typing import NamedTuple

import numpy as np

from vlmx import files
from vlmx.metrics import accuracy

KEYS = ("benchmark", "backbone", "protocol", "shots", "method")
COLUMNS = {"base_to_new": {"base": "base", "new": "new", "HM": "hm"}, "few_shot": {"accuracy": "accuracy"}}
MANY = 5000  # test images: fewer leave no meaning to a second digit behind the point

DIFFICULTY = "Relative transfer difficulty: accuracy by chance / accuracy before training (arXiv 2311.15569)."
SAME_DRAWS = (
    "In brackets: every seed drew the same training images, so this is Wilson's 95 % interval over test images."
)
ALPHA = "Alpha, the mean over the classes of a test: the weight of what was tuned, beside the pre-trained model's."


class Row(NamedTuple):
    """A method's line: `figures` column -> {"mean", "stderr"}, or {"said"} where there is none."""

    name: str
    figures: dict
    trained: tuple = ()  # trained parameters; several where they depend on the benchmark
    seconds: float = 0
    source: str = ""  # of a published line


class Table(NamedTuple):
    """`where`: the benchmark, or what an average is over. `digits`: behind the point."""

    where: str
    protocol: str
    backbone: str
    shots: tuple
    columns: tuple
    rows: list
    digits: int

    def title(self):
        """What the table shows, in words."""
        shots = "" if self.protocol == "few_shot" else f" · {in_shots(self.shots[0])}"
        return f"{self.where} · {self.protocol.replace('_', '-')}{shots} · {self.backbone}"

    def best(self, column):
        """The name of the best method, as `best_of` says."""
        return best_of({row.name: row.figures[column] for row in self.ours()})

    def ours(self):
        """The rows that were measured here."""
        return [row for row in self.rows if not row.source]


def size(n):
    """What numbers of shots are sorted by: -1, all images, is the largest."""
    return n == -1, n


def in_shots(n):
    """A number of training images a class, in words."""
    return "all images" if n == -1 else f"{n} shot{'s' if n != 1 else ''}"


# ---------------------------------------------------------------- errors of figures
def best_of(figures):
    """Return {the name of the highest mean}, or an empty set where it is not above each other one by more than the
    standard error of the difference, or that is not known.

    Args: figures: {name: {"mean", "error"}}; those without a mean do not count.
    """
    figures = {name: f for name, f in figures.items() if is_finite(f.get("mean"))}
    if len(figures) < 2 or not all(is_finite(f.get("error")) for f in figures.values()):
        return set()
    best = max(figures, key=lambda name: figures[name]["mean"])
    top = figures.pop(best)
    beats = lambda f: top["mean"] - f["mean"] > np.hypot(top["error"], f["error"])
    return {best} if all(map(beats, figures.values())) else set()


def is_finite(value):
    """Whether a value is a number that is finite."""
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def tested(run):
    """Return {part: test images that were counted} of a run, from the confusion matrices of a seed."""
    matrices = next((s["confusion"] for s in run.get("seeds") or () if s.get("confusion")), {})
    return {part: int(np.sum(matrix)) for part, matrix in matrices.items()}


def drew_the_same(run):
    """Whether several seeds of a run drew the same training images: their spread is none over draws."""
    return len(run.get("seeds") or ()) > 1 and (run.get("draws") or {}).get("different") == 1


def with_errors(summary, run, images):
    """Return the figures of a run with the errors that they have.

    Args:
        summary: {metric: {"mean", "stderr"}}.
        run: its "seeds" and "draws" say whether its seeds drew different images.
        images: {part of the test: images}.

    Returns:
        {metric: {"mean", "stderr", "error"}}: "error" is the standard error over seeds or, where that is not known,
        over test images. Where all seeds drew the same images, "stderr" is None, and there is an "interval" instead.
    """
    means = {metric: f["mean"] for metric, f in summary.items() if is_finite(f.get("mean"))}
    part = lambda metric: images.get("all" if metric == "accuracy" else metric)
    on_images = {k: accuracy.wilson_error(mean, part(k)) for k, mean in means.items() if _is_share(mean, part(k))}
    if {"base", "new"} <= on_images.keys():
        on_images["hm"] = _hm_error(*(x[k] for x in (means, on_images) for k in ("base", "new")))
    targets = [on_images.get(k) for k in means if k not in ("source", "average") and "f1" not in k]
    if "average" in means and targets and None not in targets:
        on_images["average"] = float(np.sqrt(np.sum(np.square(targets)))) / len(targets)
    result = {}
    for metric, f in summary.items():
        stderr = None if drew_the_same(run) else f.get("stderr")
        result[metric] = f | {"stderr": stderr, "error": on_images.get(metric) if stderr is None else stderr}
        if drew_the_same(run) and _is_share(means.get(metric), part(metric)):
            result[metric]["interval"] = accuracy.wilson(means[metric], part(metric))
    return result


def _is_share(mean, n):
    return is_finite(mean) and 0 <= mean <= 100 and type(n) is int and n > 0


def _hm_error(base, new, base_error, new_error):
    """The standard error of 2 b n / (b + n), whose parts are measured on different images."""
    slopes = 2 * np.square([new, base]) / max((base + new) ** 2, 1e-12)
    return float(np.hypot(*(slopes * (base_error, new_error))))


# ---------------------------------------------------------------- cells
def cells(run, results):
    """The cells of a run from its results.json."""
    config, dataset = results["config"], results["dataset"]
    common = {"run": run, "benchmark": config["title"], "backbone": _backbone(config["model"])}
    before = {"classes": len(dataset["classnames"]), "before": results["reference"]}
    own = dataset["name"] != config["title"] or any("not the published" in note for note in dataset["notes"])
    measured = {(r["method"], r["protocol"], r["shots"]): r for r in results["runs"]}
    shots = config["shots"] if isinstance(config["shots"], list) else [config["shots"]]
    failed = {(f["method"], f["protocol"]): f["error"] for f in results.get("failed", ())}
    of_targets = {name: target["n_test"] for name, target in results.get("targets", {}).items()}
    of_targets |= {"source": dataset["n_test"]}
    left_out = {"left_out": [note for note in dataset["notes"] if "left out" in note]}
    found = []
    for n in shots:
        for method, protocol in itertools.product(config["methods"], config["protocols"]):
            cell = common | {"protocol": protocol, "shots": n, "method": method}
            if (method, protocol) in failed:
                found.append(cell | {"failed": failed[method, protocol]})
                continue
            one = measured.get((method, protocol, 0)) or measured[method, protocol, n]  # 0: nothing is trained
            cell |= {key: one[key] for key in ("summary", "trained_params", "trained_percent", "seconds", "notes")}
            cell |= {"draws": one.get("draws"), "tested": tested(one) | of_targets}
            if "adaptation" in one:
                cell["adaptation"] = {
                    part: {"difficulty": a["difficulty"], "alpha": float(np.mean(a["alpha"]))}
                    for part, a in one["adaptation"].items()
                }
            cell |= {"seeds": [{"seed": s["seed"], "metrics": s["metrics"]} for s in one["seeds"]]}
            found.append(cell | before | left_out | {"n_test": dataset["n_test"], "published_split": not own})
    return found


def _backbone(model):
    return model["name"] + (f" at {model['image_size']} px" if model["image_size"] else "")


def missing(run, config, pairs, failed=""):
    """The cells of a run that has not run yet, or could not."""
    common = {"run": run, "benchmark": config.title, "backbone": _backbone(config.model)}
    shots = config.shots if isinstance(config.shots, (tuple, list)) else [config.shots]
    cells = [common | {"protocol": protocol, "method": method, "failed": failed} for method, protocol in pairs]
    return [cell | {"shots": n} for n in shots for cell in cells]


# ---------------------------------------------------------------- tables
def make(cells):
    """All tables: of each protocol and backbone (and number of shots, but for few_shot, whose columns these are) the
    average over the benchmarks, then one for each benchmark."""
    groups = {}
    for cell in cells:
        shots = None if cell["protocol"] == "few_shot" else cell["shots"]
        groups.setdefault((cell["protocol"], cell["backbone"], shots), []).append(cell)
    found = []
    for (protocol, backbone, _), group in groups.items():
        benchmarks = list(dict.fromkeys(cell["benchmark"] for cell in group))
        wholes = [tuple(benchmarks)] if len(benchmarks) > 1 and protocol in COLUMNS else []
        found += [_table(protocol, backbone, group, some) for some in (*wholes, *((b,) for b in benchmarks))]
    return found


def _table(protocol, backbone, group, benchmarks):
    """The table of one benchmark, or of the average over several."""
    group = [cell for cell in group if cell["benchmark"] in benchmarks]
    shots = tuple(sorted({cell["shots"] for cell in group}, key=size))
    if protocol == "few_shot":
        columns = {in_shots(n): ("accuracy", n) for n in shots}
    else:
        named = COLUMNS.get(protocol) or {k: k for c in group for k in c.get("summary", ()) if "f1" not in k}
        columns = {title: (metric, shots[0]) for title, metric in (named or {"source": "source"}).items()}
    rows = []
    for method in dict.fromkeys(cell["method"] for cell in group):
        mine = {(cell["benchmark"], cell["shots"]): cell for cell in group if cell["method"] == method}
        figures = {
            title: figure([mine.get((b, n)) for b in benchmarks], metric) for title, (metric, n) in columns.items()
        }
        if protocol == "base_to_new" and len(benchmarks) > 1:
            figures["HM of averages"] = {"said": "–"}
            if all("mean" in figures[k] for k in ("base", "new")):
                means, errors = ([figures[k][of] for k in ("base", "new")] for of in ("mean", "error"))
                figures["HM of averages"] = {"mean": float(accuracy.harmonic_mean(*means)), "stderr": None}
                figures["HM of averages"]["error"] = None if None in errors else _hm_error(*means, *errors)
        done = [cell for cell in mine.values() if "failed" not in cell]
        trained = tuple(sorted({cell["trained_params"] for cell in done}))
        rows.append(Row(method, figures, trained, sum(cell["seconds"] for cell in done)))
        rows += published(method, protocol, backbone, benchmarks, shots, mine.values(), rows[-1].figures)
    images = sum({cell["benchmark"]: cell["n_test"] for cell in group if "n_test" in cell}.values())
    named = ", ".join(benchmarks) if len(benchmarks) <= 4 else f"{len(benchmarks)} benchmarks"
    where = f"average over {named}" if len(benchmarks) > 1 else named
    return Table(where, protocol, backbone, shots, tuple(rows[0].figures), rows, 2 if images >= MANY else 1)


def figure(cells, metric):
    """{"mean", "stderr"} of a metric, averaged over the benchmarks' cells seed by seed; {"said"} where one lacks it."""
    cells = [cell or {"failed": ""} for cell in cells]
    if why := {"failed" if cell["failed"] else "not run" for cell in cells if "failed" in cell}:
        return {"said": min(why)}
    if any(metric not in cell["summary"] for cell in cells):
        return {"said": "–"}
    values = [[seed["metrics"][metric] for seed in cell["seeds"]] for cell in cells]
    n = max(map(len, values))  # what depends on no seed has one value
    alone = [with_errors(cell["summary"], cell, cell.get("tested", {}))[metric] for cell in cells]
    if len(cells) == 1:
        return alone[0]
    errors = [f["error"] for f in alone]
    over_images = None if None in errors else float(np.sqrt(np.sum(np.square(errors)))) / len(errors)
    if any(len(v) not in (1, n) for v in values) or all(map(drew_the_same, cells)):
        return {"mean": float(np.mean([np.mean(v) for v in values])), "stderr": None, "error": over_images}
    result = accuracy.summary(np.mean([np.broadcast_to(v, n) for v in values], axis=0))
    return result | {"error": over_images if result["stderr"] is None else result["stderr"]}


def published(method, protocol, backbone, benchmarks, shots, cells, columns):
    """The published line of a method: where benchmark (or the eleven of an average), protocol, shots and backbone are
    the same, and the data too."""
    if not all(cell.get("published_split", True) for cell in cells):
        return []
    known = _published()
    where = benchmarks[0] if len(benchmarks) == 1 else "the eleven" if sorted(benchmarks) == known["the eleven"] else ""
    rows = []
    for entry in known["rows"]:
        same = (entry["method"], entry["protocol"], entry["backbone"]) == (method, protocol, backbone)
        if same and entry["benchmark"] == where and set(entry["shots"]) & set(shots):
            given = dict(zip(entry["columns"], entry["values"], strict=True))
            if protocol not in COLUMNS and given.keys() != columns.keys():
                del given["average"]  # it is over other data sets
            figures = {c: {"mean": given[c], "stderr": None} if c in given else {"said": ""} for c in columns}
            rows.append(Row(f"{method}, published", figures, source=known["sources"][entry["source"]]))
    return rows


@functools.cache
def _published():
    return json.loads((resources.files("vlmx") / "assets" / "published.json").read_text())


# ---------------------------------------------------------------- text
def shown(figure, digits):
    """A figure as text: (mean or what is said, "± standard error", "[low, high]" or "")."""
    if "said" in figure:
        return figure["said"], ""
    if not is_finite(figure.get("mean")):
        return "–", ""
    if figure.get("interval"):
        error = "[" + ", ".join(f"{bound:.{digits}f}" for bound in figure["interval"]) + "]"
    else:
        error = f"± {figure['stderr']:.{digits}f}" if is_finite(figure.get("stderr")) else ""
    return f"{figure['mean']:.{digits}f}", error


def lines(table):
    """A table as lists of strings, the head first."""
    from vlmx.report import count, duration

    found = [["method", *table.columns, "trained parameters", "time"]]
    for row in table.rows:
        digits = 2 if row.source else table.digits
        figures = [" ".join(filter(None, shown(row.figures[c], digits))) for c in table.columns]
        trained = " – ".join(dict.fromkeys(count(n) for n in (*row.trained[:1], *row.trained[-1:])))
        found.append([row.name, *figures, trained, duration(row.seconds) if row.seconds else ""])
    return found


def difficulties(cells):
    """The benchmarks before training, and the adaptive ensemble on them, as lists of strings: two tables, either may be
    empty. The relative transfer difficulty is that of APEX (arXiv 2311.15569, section 3.1)."""
    number = lambda x, digits: "–" if x is None else f"{x:.{digits}f}"
    of, alphas = {}, {}
    for c in cells:
        if "before" in c:
            before = c["before"]
            of[c["benchmark"], c["backbone"]] = [
                *(f"{c['benchmark']} · {c['backbone']}", str(c["classes"]), number(100 / c["classes"], 1)),
                *(number(before["accuracy"], 1), number(before.get("difficulty"), 3)),
            ]
        for part, a in c.get("adaptation", {}).items():
            where = f"{c['benchmark']} · {c['protocol'].replace('_', '-')} · {in_shots(c['shots'])} · {part}"
            alphas[c["method"], where] = [c["method"], where, number(a["difficulty"], 3), number(a["alpha"], 3)]
    heads = (
        ["benchmark", "classes", "chance", "zero-shot", "transfer difficulty"],
        ["method", "test", "difficulty", "alpha"],
    )
    return [[head, *rows.values()] if rows else [] for head, rows in zip(heads, (of, alphas))]


def markdown(found):
    """A table, or one of lists of strings with the head first, in markdown, aligned to be read as it stands."""
    found = lines(found) if isinstance(found, Table) else [list(row) for row in found]
    widths = [max(map(len, column)) for column in zip(*found)]
    found.insert(1, ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
    padded = [[row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:]))] for row in found]
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def note(cells):
    """How the figures are to be read."""
    said = "Accuracy in percent, mean ± standard error over seeds."
    if any(map(drew_the_same, cells)):
        said += f" {SAME_DRAWS}"
    if any(cell["protocol"] == "base_to_new" for cell in cells):
        said += " HM: harmonic mean of base and new, taken for each seed and benchmark and then averaged (as APEX does)"
        said += "; HM of averages: taken once, of the averages (as CoCoOp, MaPLe and PromptSRC do)."
    return said


def sources(found):
    """Where the published lines of some tables come from."""
    return list(dict.fromkeys(row.source for table in found for row in table.rows if row.source))


def failures(cells):
    """[(what, why)] of the cells that have failed; those of one run that failed alike are told together."""
    found = {}
    for c in cells:
        if c.get("failed"):
            where = f"{c['benchmark']}, {c['protocol']}, {in_shots(c['shots'])}"
            found.setdefault((where, c["failed"]), []).append(c["method"])
    return [(f"{where}: {', '.join(names)}", why) for (where, why), names in found.items()]


def text(results):
    """tables.md: every table, where published numbers come from, and what has failed."""
    found = make(results["cells"])
    parts = [f"# {results['title']}", f"    {results['command']}", note(results["cells"])]
    for table in found:
        parts += [f"## {table.title()}", markdown(table)]
    before, alphas = difficulties(results["cells"])
    parts += ["## The benchmarks before training", DIFFICULTY, markdown(before)] if before else []
    parts += ["## The adaptive ensemble", ALPHA, markdown(alphas)] if alphas else []
    theirs = dict.fromkeys(f"- {row.name}: {row.source}" for table in found for row in table.rows if row.source)
    parts += ["## Where the published numbers come from", "\n".join(theirs)] if theirs else []
    worth = [f"- {note}" for note in notes(results["cells"])]
    parts += ["## Worth knowing", "\n".join(worth)] if worth else []
    failed = [f"- {what}: {why}" for what, why in failures(results["cells"])]
    parts += ["## Failed", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def notes(cells):
    """What has to be known of single cells: what was left out, what could not be measured."""
    found = [f"{c['benchmark']}: {note}" for c in cells for note in c.get("left_out") or ()]
    found += [f"{c['benchmark']}, {c['method']}: {note}" for c in cells for note in c.get("notes") or ()]
    return list(dict.fromkeys(found))


def table_csv(cells):
    """results.csv: a line for every seed and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*KEYS, "seed", "metric", "value", "trained_params", "seconds"])
    for cell in cells:
        key = [files.csv_cell(cell[k]) for k in KEYS]
        if "failed" in cell:
            writer.writerow([*key, "", "failed" if cell["failed"] else "not run", "", "", ""])
        for seed in cell.get("seeds", ()):
            for metric, value in seed["metrics"].items():
                values = [seed["seed"], metric, value, cell["trained_params"], cell["seconds"]]
                writer.writerow([*key, *map(files.csv_cell, values)])
    return out.getvalue()
