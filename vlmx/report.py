"""The page and the table that a run ends in, made from `results.json` alone. Again: `python -m vlmx.report WORKDIR`."""

import base64
import io
import json
import math
import sys
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from vlmx import charts, files, tables, vl_report
from vlmx.data import protocols
from vlmx.errors import UserError
from vlmx.metrics import accuracy

HEADLINE = (
    ("few-shot", "few_shot", "accuracy"),
    ("base", "base_to_new", "base"),
    ("new", "base_to_new", "new"),
    ("HM", "base_to_new", "hm"),
)
AGAIN = "Remove it and run the command again to write it: what is finished is read back."
MISTAKES = 21  # pictures shown per run: three rows of the page


# ---------------------------------------------------------------- reading and saying
def load(workdir):
    """results.json of a workdir -> dict. UserError where it is missing, cut short or something else."""
    path = Path(workdir) / "results.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: give the --workdir of a run that has finished")
    return files.read_json(path, AGAIN)


def duration(seconds):
    """Seconds in words: "1 h 05 min", "2 min 03 s", "4.2 s"."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else (f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s")


def count(n):
    """Trained or held parameters: 8,192 in full, 149.6 M when the digits say nothing."""
    return "" if n is None else f"{n:,}" if n < 1e6 else f"{n / 1e6:,.1f} M"


def percent(value):
    """Two significant digits, for shares that span 0.0005 % to 100 %."""
    if value is None:
        return ""
    return (
        f"{value:.0f} %" if value >= 99.5 or not value else f"{float(f'{value:.2g}'):f}".rstrip("0").rstrip(".") + " %"
    )


def names(runs):
    """A name for each run: its method, and what differs where it ran again in the same protocol and shots."""

    def settings(run):
        return {"images": run.get("images"), **(run.get("settings") or {})}

    result = []
    for run in runs:
        twins = [r for r in runs if all(r.get(k) == run.get(k) for k in ("method", "protocol", "shots"))]
        differs = [k for k, v in settings(run).items() if any(settings(t).get(k) != v for t in twins)]
        result.append(" ".join([str(run.get("method", "run")), *(f"{k}={settings(run)[k]}" for k in differs)]))
    return result


def figures(run):
    """{metric: {"mean", "stderr", ...}} of a run, see tables.with_errors: its own summary, or made from its seeds."""
    seeds = [seed.get("metrics") or {} for seed in run.get("seeds") or []]
    found = dict.fromkeys(name for metrics in seeds for name in metrics)
    made = {name: accuracy.summary([m[name] for m in seeds if m.get(name) is not None] or [math.nan]) for name in found}
    given = {k: v if isinstance(v, dict) else {"mean": v} for k, v in (run.get("summary") or {}).items()}
    return tables.with_errors(made | given, run, tables.tested(run))


def result_rows(results):
    """The headline table -> (columns, rows): a row is a method at one number of shots, with every protocol."""
    runs = [run for run in results.get("runs") or [] if run.get("protocol") in ("few_shot", "base_to_new")]
    digits = 2 if ((results.get("dataset") or {}).get("n_test") or 0) >= 5000 else 1  # none finer than half an image
    columns = [c for c in HEADLINE if any(c[1] == run["protocol"] and c[2] in figures(run) for run in runs)]
    rows = {}
    for name, run in zip(names(runs), runs):
        shots, values = run.get("shots"), figures(run)
        row = rows.setdefault(
            (name, shots),
            {
                "name": name,
                "shots": shots,
                "figures": {},
                "cells": {},
                "best": set(),
                "seconds": 0,
                "trained": {},
                "trained_in": {},
            },
        )
        row["seconds"] += run.get("seconds") or 0
        if run.get("trained_params") is not None:  # a protocol may have its own recipe, and so its own number
            row["trained"].setdefault(run["trained_params"], run.get("trained_percent"))
            row["trained_in"].setdefault(run["trained_params"], {})[run["protocol"].replace("_", "-")] = None
        for title, protocol, metric in columns:
            if protocol == run["protocol"] and metric in values:
                row["figures"][title] = values[metric]
                row["cells"][title] = tables.shown(values[metric], digits)
        means = [values[part].get("mean") for part in ("base", "new") if part in values]
        if len(means) == 2 and all(map(tables.is_finite, means)):
            row["hm_of_means"] = f"{accuracy.harmonic_mean(*means):.{digits}f}"
    for title, _, _ in columns:
        for key in tables.best_of({key: row["figures"].get(title, {}) for key, row in rows.items()}):
            rows[key]["best"].add(title)
    return [c[0] for c in columns], list(rows.values())


def _subject(results):
    """What a run without methods is about: the model it made."""
    return str((results.get("model") or {}).get("name") or "training")


def other_figures(results):
    """Runs without a protocol or methods (pre-training): {"name", "figures": [(metric, mean, stderr)]}."""
    runs = [run for run in results.get("runs") or [] if run.get("protocol") not in protocols.PROTOCOLS]
    runs += [{**results, "method": _subject(results)}] if results.get("summary") else []
    rows = [(run, [(k.replace("_", " "), *tables.shown(v, 2)) for k, v in figures(run).items()]) for run in runs]
    return [{"name": str(run.get("method", "run")), "figures": found} for run, found in rows if found]


def transfers(results):
    """The tables of the protocols that test on other data sets."""
    found = [run for run in results.get("runs") or [] if run.get("protocol") in protocols.TRANSFER]
    return [t for t in tables.make(tables.cells("", results)) if t.protocol in protocols.TRANSFER] if found else []


def seeds_of(results):
    """All the seeds named in the results, in the order they ran; what depends on none (zero-shot) has None there."""
    seeds = [seed.get("seed") for run in results.get("runs") or [] for seed in run.get("seeds") or []]
    return list(dict.fromkeys(seed for seed in seeds if seed is not None))


def has_spread(results):
    """Whether a run has several seeds with images of their own, so that an error over seeds is shown."""
    runs = results.get("runs") or []
    return any(len(run.get("seeds") or []) > 1 and not tables.drew_the_same(run) for run in runs)


def table(results):
    """The result table as plain text, for the terminal."""
    columns, rows = result_rows(results)
    lines = [["method", "shots", *columns, "trained parameters"]] if rows else []
    for row in rows:
        cells = [" ".join(filter(None, row["cells"].get(title, ("",)))).replace("±", "+-") for title in columns]
        trained = " / ".join(f"{count(n)} ({percent(p)})".removesuffix(" ()") for n, p in row["trained"].items())
        lines.append([row["name"], shots_in_words(row["shots"]) or "-", *cells, trained])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [f"{line[0]:{widths[0]}}" + "".join(f"  {v:>{w}}" for v, w in zip(line[1:], widths[1:])) for line in lines]
    if text:
        text.insert(1, "-" * len(text[0]))
        seeds = seeds_of(results)
        same = [tables.drew_the_same(run) for run in results.get("runs") or []]
        error = " +- standard error" if has_spread(results) else ""
        many = f"; mean{error} over seeds {', '.join(map(str, seeds))}"
        text.append("per cent" + (many if len(seeds) > 1 else f"; seed {seeds[0]}" if seeds else ""))
        text += [tables.SAME_DRAWS] if any(same) else []
        if unreadable := (results.get("dataset") or {}).get("unreadable"):
            text.append(f"left out, for they cannot be read: {unreadable} image{'s' if unreadable > 1 else ''}")
    for found in transfers(results):
        text += ["", found.title(), tables.markdown(found)]
    text += [f"failed: {what}: {why}" for what, why in failures(results)]
    for row in other_figures(results):
        found = [" ".join(filter(None, figure)).replace("±", "+-") for figure in row["figures"]]
        text.append(f"{row['name']}: {', '.join(found)}")
    return "\n".join(line.rstrip() for line in text)


def shots_in_words(shots):
    """ "16", or "all" where every training image is used; "" where nothing is trained."""
    return {-1: "all", 0: "", None: ""}.get(shots, str(shots))


def drawn(results):
    """Return sentences that say which images were trained on: of each protocol and number of shots."""
    sentences = {}
    for run in results.get("runs") or []:
        seeds, shots = [s.get("seed") for s in run.get("seeds") or [] if s.get("seed") is not None], run.get("shots")
        if not seeds or not shots:
            continue
        draws, names = run.get("draws") or {}, ", ".join(map(str, seeds))
        least, most = (draws.get(key) for key in ("least", "most"))
        if least is None:
            counts = f"{'all' if shots == -1 else f'at most {shots}'} labelled images of each class"
        else:
            counts = f"{most} labelled image{'s' * (most != 1)} of each class"
            if least != most:
                counts = f"{least} to {most} labelled images of a class"
            if shots != -1 and least < shots:
                counts += f", for not every class has {shots}"
        if shots == -1:
            how = "all that there are"
        elif tables.drew_the_same(run):
            how = f"the same for every seed ({names}), since no class has more"
        else:
            how = f"drawn with seed{'s' * (len(seeds) > 1)} {names}"
        where = f"{(run.get('protocol') or 'training').replace('_', '-')}, {tables.in_shots(shots)}"
        sentences.setdefault(f"{counts}; {how}", {})[where] = None
    return [f"{sentence} ({'; '.join(where)})" for sentence, where in sentences.items()]


def failures(results):
    """[(what, why)] of the methods that failed."""
    return [(f"{f['method']}, {f['protocol']}", f["error"]) for f in results.get("failed") or []]


# ---------------------------------------------------------------- the pictures it got wrong
def pick_mistakes(said, p, labels, n=MISTAKES, weight=None):
    """Rows [k <= n] of the surest mistakes, in turn from the true classes so that one bad class does not fill the page.

    `said` and `labels` [N] are classes, `p` [N] the probability of what was said; rows of zero `weight` [N] are left.
    """
    said, p, labels = np.asarray(said), np.asarray(p), np.asarray(labels)
    wrong = np.flatnonzero((said != labels) & (True if weight is None else np.asarray(weight) != 0))
    wrong = wrong[np.argsort(-p[wrong], kind="stable")]
    seen = Counter()
    turn = [seen.update([label]) or seen[label] for label in labels[wrong].tolist()]
    return wrong[np.argsort(turn, kind="stable")][:n]


def save_mistakes(workdir, images, rows):
    """Write `images` (PIL, or uint8 [H, W, 3] or [H, W]) as small PNGs under workdir/mistakes.

    `rows`: one {"run", "seed", "part", "true", "said", "p"} per image; returned with "image", a path from `workdir`.
    """
    (Path(workdir) / "mistakes").mkdir(parents=True, exist_ok=True)
    saved = []
    for i, (image, row) in enumerate(zip(images, rows, strict=True)):
        image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        image.thumbnail((224, 224))
        name = f"mistakes/{row.get('run', 0)}-{row.get('seed')}-{row.get('part', 'all')}-{i:03d}.png"
        image.convert("RGB").save(Path(workdir) / name)
        saved.append({**row, "image": name})
    return saved


def data_uri(workdir, name, side=160):
    """The image as a data URI, or None: a page without one of its pictures is better than no page."""
    path = (Path(workdir) / str(name)).resolve()
    if not path.is_relative_to(Path(workdir).resolve()):
        return None
    try:
        image = Image.open(path).convert("RGB")
    except OSError:
        return None
    small = max(image.size) <= 64
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def mistakes(results, workdir, run_names):
    """The pictures to show -> [{"name", "part", "rows": [mistake + "uri" (or None) and "sure"]}], by run and part."""
    groups = {}
    for row in results.get("mistakes") or []:
        sure = "" if row.get("p") is None else f"{100 * row['p']:.0f}\u00a0%"
        groups.setdefault((row.get("run", 0), row.get("part", "all")), []).append(row | {"sure": sure})
    return [
        {
            "name": run_names[run] if run < len(run_names) else f"run {run}",
            "part": charts.PARTS.get(part, part),
            "seed": rows[0].get("seed"),
            "folded": part != "all" and any(p == "all" for _, p in groups),
            "rows": [row | {"uri": data_uri(workdir, row.get("image"))} for row in rows[:MISTAKES]],
        }
        for (run, part), rows in groups.items()
    ]


def transfer_difficulty(classes, accuracy):
    """The relative transfer difficulty, accuracy by chance / zero-shot accuracy, both in percent; None where the latter
    is 0 (APEX, arXiv 2311.15569, section 3.1)."""
    return 100 / classes / accuracy if accuracy else None


def adaptations(shown, colours):
    """How far each method with the adaptive ensemble trusts its tuning: [{"name", "rows", "charts"}], rows of (part,
    difficulty, zero-shot accuracy, mean distance, mean alpha), charts as SVG."""
    found = []
    for name, run in shown:
        parts = run.get("adaptation") or {}
        if not parts:
            continue
        rows = [
            (charts.PARTS.get(part, part), a["difficulty"], a["reference"], np.mean(a["diff_avg"]), np.mean(a["alpha"]))
            for part, a in parts.items()
        ]
        drawn = [charts.alpha(parts, against, salt=f"a{len(found)}{against}") for against in ("distance", "difficulty")]
        found.append({"name": name, "protocol": run.get("protocol"), "rows": rows, "charts": drawn})
    return found


# ---------------------------------------------------------------- the page
def page(results, workdir):
    """The page as text: no request leaves it, every string of the results is escaped."""
    runs = results.get("runs") or []
    run_names = names(runs)
    colours = {name: charts.COLOURS[i % len(charts.COLOURS)] for i, name in enumerate(dict.fromkeys(run_names))}
    shown = charts.largest(runs, run_names)
    sources = list(zip(run_names, runs)) + [(_subject(results), results)]
    columns, rows = result_rows(results)
    other_sets = transfers(results)
    dataset, model = results.get("dataset") or {}, results.get("model") or {}
    notes = [f"{what} failed: {why}" for what, why in failures(results)]
    notes += [note for holder in (dataset, *runs, results) for note in holder.get("notes") or []]
    learnt = [
        (name, run["images"]) for name, run in zip(run_names, runs) if run.get("images") and run.get("trained_params")
    ]
    return template("report.html.j2").render(
        results=results,
        dataset=dataset,
        model=model,
        runs=list(zip(run_names, runs)),
        columns=columns,
        drawn=drawn(results),
        same_draws=tables.SAME_DRAWS if any(map(tables.drew_the_same, runs)) else "",
        in_words=shots_in_words,
        in_shots=tables.in_shots,
        of_most="Of several numbers of shots, those of the largest. " if len(shown) < len(runs) else "",
        trained_in=next(
            (" / ".join(map(" and ".join, r["trained_in"].values())) for r in rows if len(r["trained"]) > 1), ""
        ),
        shown=tables.shown,
        rows=rows,
        transfers=other_sets,
        sources=tables.sources(other_sets),
        lines=tables.lines,
        others=other_figures(results),
        colours=colours,
        seeds=seeds_of(results),
        spread=has_spread(results),
        protocols={run.get("protocol") for run in runs},
        images=list(dict.fromkeys(learnt)),
        notes=list(dict.fromkeys(notes)),
        curves=charts.curves(sources, colours),
        classes=charts.per_class(shown, colours),
        adaptations=adaptations(shown, colours),
        confusions=charts.confusions(shown, dataset.get("classnames") or []),
        mistakes=mistakes(results, workdir, run_names),
        seed_rows=[(name, run, seed) for name, run in zip(run_names, runs) for seed in run.get("seeds") or []],
        config=indented(results.get("config") or {}),
        hardest=charts.HARDEST,
        points=charts.POINTS,
    )


def method_colours(cells):
    """{method: colour} of a sweep."""
    names = dict.fromkeys(cell["method"] for cell in cells)
    return {name: charts.COLOURS[i % len(charts.COLOURS)] for i, name in enumerate(names)}


def sweep_page(results):
    """The page of a sweep (vlmx/sweep.py) as text."""
    cells, found = results["cells"], tables.make(results["cells"])
    done = [cell for cell in cells if "failed" not in cell]
    distinct = lambda key: list(dict.fromkeys(cell[key] for cell in cells))
    colours = method_colours(cells)
    before, ensemble = tables.difficulties(cells)
    curves = [(t.title(), charts.few_shot(t, colours, f"f{i}")) for i, t in enumerate(found) if len(t.shots) > 1]
    return template("sweep.html.j2").render(
        results=results,
        tables=found,
        lines=tables.lines,
        shown=tables.shown,
        note=tables.note(cells),
        notes=tables.notes(cells),
        failed=tables.failures(cells),
        n_failed=sum(bool(cell.get("failed")) for cell in cells),
        sources=tables.sources(found),
        done=len(done),
        spent=sum(cell["seconds"] for cell in done),
        seeds=seeds_of({"runs": done}),
        benchmarks=distinct("benchmark"),
        backbones=distinct("backbone"),
        runs=list(dict.fromkeys(cell["run"] for cell in done)),
        colours=colours,
        curves=curves,
        drawn=distinct("method"),
        before=before,
        ensemble=ensemble,
        about=(tables.DIFFICULTY, tables.ALPHA),
        alphas=charts.alpha_of_tests([c for c in done if "adaptation" in c], colours, "alpha"),
    )


def indented(config):
    """A config as text."""
    return json.dumps(config, indent=2, ensure_ascii=False)


def template(name):
    """A template of vlmx/assets; what it is given is escaped."""
    loader = jinja2.PackageLoader("vlmx", "assets")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(count=count, percent=percent, duration=duration, zip=zip)
    return environment.get_template(name)


def write(workdir):
    """Make workdir/report.html from workdir/results.json -> its path. UserError if there are no results.

    Those of a sweep become tables.md and results.csv too and, of several numbers of shots, curves.png.
    """
    workdir = Path(workdir)
    results = load(workdir)
    with files.reading(workdir / "results.json", AGAIN):
        try:
            contents = pages(results, workdir)
        except jinja2.TemplateError as e:  # a part that a page asks for is missing
            raise ValueError(e) from e
    for name, content in contents.items():
        files.write(workdir / name, content)
    return workdir / "report.html"


def pages(results, workdir):
    """{name of a file: its content}: what is made from results.json."""
    if results.get("family") == "vl":
        return {"report.html": vl_report.page(results, workdir)}
    if "cells" not in results:
        return {"report.html": page(results, workdir)}
    found = {"tables.md": tables.text(results), "results.csv": tables.table_csv(results["cells"])}
    if curves := [table for table in tables.make(results["cells"]) if len(table.shots) > 1]:
        found["curves.png"] = charts.few_shot_picture(curves, method_colours(results["cells"]))
    return found | {"report.html": sweep_page(results)}


def main(arguments):
    """`python -m vlmx.report WORKDIR`: the page again, and the table; returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m vlmx.report WORKDIR", file=sys.stderr)
        return 2
    try:
        path, results = write(arguments[0]), load(arguments[0])
        with files.reading(Path(arguments[0]) / "results.json", AGAIN):
            print(text(results))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


def text(results):
    """The tables of any results for the terminal."""
    if "cells" in results:
        return tables.text(results)
    return vl_report.table(results) if results.get("family") == "vl" else table(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
