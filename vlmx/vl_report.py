"""The table and the page of a run of vision-and-language tasks, made from its results.json alone."""

from vlmx import charts, report

BASELINE = "trivial baseline"


def rows_of(results):
    """(columns, rows): a row is a variant, {"name", "trained", "percent", "cells": {column: value}, "seconds"}; the
    first is that of answers which look at nothing."""
    tasks = results["tasks"]
    column = {t["name"]: f"{t['name']} {t['metric']}" for t in tasks}
    base = {column[t["name"]]: t["baseline"]["test"].get(t["metric"]) for t in tasks}
    rows = [{"name": BASELINE, "trained": 0, "percent": 0.0, "cells": base, "seconds": None}]
    for run in results["runs"]:
        cells = {column[t["name"]]: run["tasks"][t["name"]].get("test", {}).get(t["metric"]) for t in tasks}
        rows.append({"name": run["method"], "trained": run["trained_params"], "percent": run["trained_percent"],
                     "cells": cells, "seconds": run["seconds"]})  # fmt: skip
    columns = list(base)
    for row in rows if len(tasks) > 1 else ():
        values = [row["cells"][c] for c in columns]
        row["cells"] = row["cells"] | {"average": None if None in values else sum(values) / len(values)}
    return columns + ["average"] * (len(tasks) > 1), rows


def baselines(results):
    """What the trivial baseline of each task is, in words: [(task, kind, answer)]."""
    return [(t["name"], t["baseline"]["name"], t["baseline"]["answer"]) for t in results["tasks"]]


def table(results):
    """The result table as plain text, for the terminal."""
    columns, rows = rows_of(results)
    lines = [["variant", "trained", "%", *columns, "time"]]
    for row in rows:
        cells = ["-" if row["cells"][c] is None else f"{row['cells'][c]:.1f}" for c in columns]
        share = f"{row['percent']:.2f}" if row["trained"] else "-"
        lines.append([row["name"], f"{row['trained']:,}", share, *cells, report.duration(row["seconds"])])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f"{line[0]:{widths[0]}}" + "".join(f"  {v:>{w}}" for v, w in zip(line[1:], widths[1:])) for line in lines]
    text.insert(1, "-" * len(text[0]))
    text.append(f"test, in per cent; backbone {results['model']['name']}; {BASELINE}:")
    text += [f"  {task}: always {answer!r} ({kind})" for task, kind, answer in baselines(results)]
    return "\n".join(line.rstrip() for line in text)


def page(results, workdir):
    """The page as text: no request leaves it, every string of the results is escaped."""
    columns, rows = rows_of(results)
    colours = {run["method"]: charts.COLOURS[i % len(charts.COLOURS)] for i, run in enumerate(results["runs"])}
    best = {c: max((row["cells"][c] for row in rows if row["cells"][c] is not None), default=None) for c in columns}
    return report.template("vl.html.j2").render(
        results=results, columns=columns, rows=rows, best=best, colours=colours, baselines=baselines(results),
        curves=charts.by_task(results["runs"], [t["name"] for t in results["tasks"]], colours),
        examples=examples(results, workdir), details=details(results),
        notes=[note for t in results["tasks"] for note in t["notes"]],
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
                by_task[row["part"]].append(row | {"uri": uri, "looked": looked})
        found.append((run["method"], [(task, rows) for task, rows in by_task.items() if rows]))
    return found


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
