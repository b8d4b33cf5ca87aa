"""The answers of a run as its tasks' leaderboards take them."""

from vlmx import files, logs
from vlmx.data import submission, vl
from vlmx.vl_predict import predict

ENDINGS = {"nlvr": "csv", "tvc": "jsonl", "yc2c": "jsonl"}  # of the others: json


def write(world, mix, chosen, v, number, said, folder):
    """folder/TASK.json (csv, jsonl) of `said`, the answers to the test of the task `number`. Where config.data.hidden
    names the task, TASK-hidden too: of the test whose answers the leaderboard keeps. Tasks without a leaderboard: none.
    """
    task, data = world.tasks[number], world.config.data
    if task.name not in submission.FORMS:
        return
    parts = {task.name: (task.test, said)}
    if task.name in data.get("hidden", ()):
        examples = vl.reader(task.name).hidden(task.name, data)
        parts[f"{task.name}-hidden"] = examples, predict(world, mix, chosen, v, number, examples)
    for name, (examples, answers) in parts.items():
        path = folder / f"{name}.{ENDINGS.get(task.name, 'json')}"
        files.write(path, submission.submission(task.name, examples, answers))
        logs.say(f"{name}: {len(examples):,} answers for its leaderboard: {path}")
