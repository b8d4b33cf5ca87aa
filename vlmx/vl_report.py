"""The table and the page of a run of vision-and-language tasks, made from its results.json alone."""

import numpy as np

from vlmx import charts, report, tables
from vlmx.metrics import accuracy

BASELINE = "trivial baseline"
SHARES = ("accuracy",)  # metrics that are a share of the test examples


def rows_of(results):
    """(columns, rows): a row is a variant, {"name", "trained", "percent", "cells": {column: value}, "seconds"}; the
    first is that of answers which look at nothing."""
    tasks = results["tasks"]
    column = {t["name"]: f"{t['name']} {t['metric']}" for t in tasks}
    # Without a test the baseline is measured on validation examples, which are no column.
    base = {column[t["name"]]: t["baseline"]["test"].get(t["metric"]) if t.get("n_test", 1) else None for t in tasks}
    rows = [{"name": BASELINE, "trained": 0, "percent": 0.0, "cells": base, "seconds": None}]
    for run in results["runs"]:
        cells = {column[t["name"]]: run["tasks"][t["name"]].get("test", {}).get(t["metric"]) for t in tasks}
        rows.append({"name": run["method"], "trained": run["trained_params"], "percent": run["trained_percent"],
                     "cells": cells, "seconds": run["seconds"]})  # fmt: skip
    columns = list(base)
    for row in rows if len(tasks) > 1 else ():
        values = [row["cells"][c] for c in columns]
        row["cells"] = row["cells"] | {
            "average": sum(values) / len(values) if all(map(tables.is_finite, values)) else None
        }
    return columns + ["average"] * (len(tasks) > 1), rows


def best_of(results, columns, rows):
    """{column: the name of its best row, where it is above each other one by more than the standard error of the
    difference}: over test examples, of shares alone; the error of a caption metric is not known."""
    n = {f"{t['name']} {t['metric']}": t.get("n_test") for t in results["tasks"] if t["metric"] in SHARES}
    best = {}
    for c in columns:
        parts = [p for p in columns if p != "average"] if c == "average" else [c]
        figures = {}
        for row in rows:
            values = [row["cells"][p] for p in parts]
            known = all(n.get(p) and tables.is_finite(v) and 0 <= v <= 100 for p, v in zip(parts, values))
            errors = [accuracy.wilson_error(v, n[p]) for p, v in zip(parts, values)] if known else [None]
            error = float(np.sqrt(np.sum(np.square(errors)))) / len(errors) if known else None
            figures[row["name"]] = {"mean": row["cells"][c], "error": error}
        best[c] = tables.best_of(figures)
    return best


def baselines(results):
    """What the trivial baseline of each task is, in words: [(task, kind, answer)]."""
    return [(t["name"], t["baseline"]["name"], t["baseline"]["answer"]) for t in results["tasks"]]


def table(results):
    """The result table as plain text, for the terminal."""
    columns, rows = rows_of(results)
    lines = [["variant", "trained", "%", *columns, "time"]]
    for row in rows:
        cells = [f"{row['cells'][c]:.1f}" if tables.is_finite(row["cells"][c]) else "-" for c in columns]
        share = f"{row['percent']:.2f}" if row["trained"] else "-"
        lines.append([row["name"], f"{row['trained']:,}", share, *cells, report.duration(row["seconds"])])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f"{line[0]:{widths[0]}}" + "".join(f"  {v:>{w}}" for v, w in zip(line[1:], widths[1:])) for line in lines]
    text.insert(1, "-" * len(text[0]))
    text.append(f"test, in per cent; backbone {results['model']['name']}; {BASELINE}:")
    text += [f"  {task}: always {answer!r} ({kind})" for task, kind, answer in baselines(results)]
    text += [f"note: {note}" for note in notes(results)]
    return "\n".join(line.rstrip() for line in text)


def page(results, workdir):
    """The page as text: no request leaves it, every string of the results is escaped."""
    columns, rows = rows_of(results)
    colours = {run["method"]: charts.COLOURS[i % len(charts.COLOURS)] for i, run in enumerate(results["runs"])}
    return report.template("vl.html.j2").render(
        results=results, is_finite=tables.is_finite, columns=columns, rows=rows, best=best_of(results, columns, rows),
        colours=colours, baselines=baselines(results),
        curves=charts.by_task(results["runs"], [t["name"] for t in results["tasks"]], colours),
        examples=examples(results, workdir), details=details(results),
        notes=notes(results),
        config=report.indented(results["config"]),
    )  # fmt: skip


def examples(results, workdir):
    """[(variant, [(task, rows)])] with pictures as data URIs: of each row "uri", and "looked" where there is one."""
    found = []
    for i, run in enumerate(results["runs"]):
        by_task = {t["name"]: [] for t in results["tasks"]}
        for row in results["examples"]:
            if row["run"] == i:
                looked = report.data_uri(workdir, row["attention"], side=1400) if row.get("attention") else None
                uri = report.data_uri(workdir, row["image"])
                by_task[row["part"]].append(row | {"uri": uri, "looked": looked, "outcome": outcome(row)})
        found.append((run["method"], [(task, rows) for task, rows in by_task.items() if rows]))
    return found


def notes(results):
    """What a person should know of the tasks' data, each note with the task's name."""
    pairs = [(t["name"], note) for t in results["tasks"] for note in t["notes"]]
    return [note if note.startswith(name) else f"{name}: {note}" for name, note in pairs]


def outcome(row):
    """ "right", "partly right" or "wrong" of an example, or "" where its answer is a caption or nothing is known."""
    score = row.get("score")
    if not tables.is_finite(score):
        return ""
    return "right" if score > 99.9 else "partly right" if score > 0 else "wrong"


def details(results):
    """Every number of every task's test, and the first of its validation: [(task, metrics, [(variant, values)])]."""
    found = []
    for t in results["tasks"]:
        tested = []
        for run in results["runs"]:
            numbers = run["tasks"][t["name"]]
            val = {f"validation {t['metric']}": numbers.get("val", {}).get(t["metric"])} if "val" in numbers else {}
            tested.append((run["method"], numbers.get("test", {}) | val))
        metrics = list(dict.fromkeys(k for _, numbers in tested for k in numbers))
        tested.insert(0, (t["baseline"]["name"], t["baseline"]["test"]))
        found.append((t, metrics, [(name, [numbers.get(k) for k in metrics]) for name, numbers in tested]))
    return found
