"""What a tuned model answers: text that it generates, or the likeliest of a task's choices, by one decoder step."""

import dataclasses
import functools

import jax

from vlmx import shard, variant
from vlmx.data import vl_batches
from vlmx.generate import generate, which
from vlmx.logs import progress


def predict(world, mix, chosen, v, number, examples):
    """The answers, a list of str, to examples of the task `number`."""
    task, rows, found = world.tasks[number], shard.up(world.mesh, world.config.eval_batch), []
    v = shard.place(v, shard.on(world.mesh))
    answer, how = program(world, chosen, task)
    with progress(len(examples), f"answering {task.name}", unit="example") as bar:
        for start in range(0, len(examples), rows):
            part = [examples[i] for i in range(start, min(start + rows, len(examples)))]
            b = shard.put(world.mesh, "batch", vl_batches.inputs(mix, number, part, rows), shard.SEVERAL)
            said = shard.gather(world.mesh, answer(*how, world.model, v, b))[: len(part)]
            found += [task.choices[i] for i in said] if task.choices else world.words.texts(said)
            bar.update(len(part))
    return found


def program(world, chosen, task):
    """(the compiled function, its first arguments); then come (model, v, batch), of which it gives the ids of answers
    or, where a task has choices, their numbers."""
    c = world.model.config
    if task.choices:
        given = (world.words.hf.bos_token_id,) if c.family == "bart" else ()
        return _choose, (chosen, choices(world.words, task.choices), given)
    return _generate, (chosen, how_to_generate(task, c.generation))


def choices(words, texts):
    """The id of each word's first piece, without a blank before it."""
    return tuple(words.hf(text, add_special_tokens=False)["input_ids"][0] for text in texts)


def how_to_generate(task, own):
    """A vlseq.Generation: the task's beams and lengths, the checkpoint's other rules, the published beam search.

    With beams a text is made to end. It begins with the token that the model was tuned with.
    """
    more = {"length_penalty": 1.0, "sample": False, "force_end": task.beams > 1, "min_length": 0}
    more |= {"begin": None, "published_beams": True}
    return dataclasses.replace(own, beams=task.beams, max_length=task.answer_length, **more)


def dressed(chosen, model, v, batch):
    """(the model, the Insert, visual tokens) of a batch's task, see variant.dressed."""
    model, into = variant.dressed(chosen, model, variant.pick(v["train"], batch["task"]), v["fixed"])
    return model, into, model.visual(batch["features"], batch.get("boxes"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(chosen, how, model, v, batch):
    model, into, vis = dressed(chosen, model, v, batch)
    return generate(model, batch["ids"], vis, how, into, real=batch["real"])[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _choose(chosen, words, given, model, v, batch):
    model, into, vis = dressed(chosen, model, v, batch)
    return which(model, batch["ids"], vis, words, given, into, batch["real"])
