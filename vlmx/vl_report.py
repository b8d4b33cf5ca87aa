"""The table and the page of a run of vision-and-language tasks, made from its results.json alone."""

from vlmx import charts, report


def rows_of(results):
    """(columns, rows): a row is a variant, {"name", "trained", "percent", "cells": {column: value}, "seconds"}; the
    first is the most frequent answer's."""
    tasks = results["tasks"]
    column = {t["name"]: f"{t['name']} {t['metric']}" for t in tasks}
    base = {column[t["name"]]: t["majority"]["test"].get(t["metric"]) for t in tasks}
    rows = [{"name": "most frequent answer", "trained": 0, "percent": 0.0, "cells": base, "seconds": None}]
    for run in results["runs"]:
        cells = {column[t["name"]]: run["tasks"][t["name"]].get("test", {}).get(t["metric"]) for t in tasks}
        rows.append({"name": run["method"], "trained": run["trained_params"], "percent": run["trained_percent"],
                     "cells": cells, "seconds": run["seconds"]})  # fmt: skip
    columns = list(base)
    for row in rows if len(tasks) > 1 else ():
        values = [row["cells"][c] for c in columns]
        row["cells"] = row["cells"] | {"average": None if None in values else sum(values) / len(values)}
    return columns + ["average"] * (len(tasks) > 1), rows


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
    return "\n".join(line.rstrip() for line in [*text, f"test, in per cent; backbone {results['model']['name']}"])


def page(results, workdir):
    """The page as text: no request leaves it, every string of the results is escaped."""
    columns, rows = rows_of(results)
    colours = {run["method"]: charts.COLOURS[i % len(charts.COLOURS)] for i, run in enumerate(results["runs"])}
    curves = [
        (run["method"], {**run, "curve": {k: v for k, v in run["curve"].items() if not k.startswith(charts.COUNTS)}})
        for run in results["runs"]
    ]
    best = {c: max((row["cells"][c] for row in rows if row["cells"][c] is not None), default=None) for c in columns}
    shown = [
        (run["method"], [row | {"uri": report.data_uri(workdir, row["image"])} for row in results["examples"]
                         if row["run"] == i])
        for i, run in enumerate(results["runs"])
    ]  # fmt: skip
    return report.template("vl.html.j2").render(
        results=results, columns=columns, rows=rows, best=best, colours=colours, curves=charts.curves(curves, colours),
        examples=shown, details=details(results), notes=[note for t in results["tasks"] for note in t["notes"]],
        config=report.indented(results["config"]),
    )  # fmt: skip


def details(results):
    """Every number of every task's test: [(task, metrics, [(variant, values)])]."""
    found = []
    for t in results["tasks"]:
        tested = [(run["method"], run["tasks"][t["name"]].get("test", {})) for run in results["runs"]]
        metrics = list(dict.fromkeys(k for _, numbers in tested for k in numbers))
        tested.insert(0, ("most frequent answer", t["majority"]["test"]))
        found.append((t, metrics, [(name, [numbers.get(k) for k in metrics]) for name, numbers in tested]))
    return found
