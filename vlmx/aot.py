"""A program compiled ahead of time, as far as a plan needs it; see vlmx/plan.py.

A compiler optimises a program, places its arrays in memory, and writes machine code. A plan tells the first two; the
third is nine tenths of libtpu's time and more. libtpu cannot be asked to leave it out, but writes what it has to files
when asked to dump: so these are read as soon as they are there, and the process ends, in which it would go on.
"""

import multiprocessing
import os
import re
import tempfile
import traceback
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vlmx.errors import UserError

# What every such process would take seconds to import.
SLOW = ["vlmx.abstract", "vlmx.vl_abstract", "vlmx.charts", "transformers.models.auto.tokenization_auto"]


class Program(NamedTuple):
    """text: of the optimised HLO, None where jaxlib cannot read it; the bytes of a chip's memory that are arguments,
    results that lie nowhere among these, temporaries and machine code, which is None where there is none; kept: places
    of the arguments that the program has: jax leaves out what is not used."""

    text: str | None
    arguments: int
    results: int
    temporaries: int
    code: int | None
    kept: frozenset[int]


def whole(lowered):
    """The Program of what `jax.jit(...).lower(...)` gave, compiled to its end."""
    return _finished(lowered.compile())


def _finished(compiled):
    m = compiled.memory_analysis()
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        text = None
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    sizes = m.argument_size_in_bytes, results, m.temp_size_in_bytes, m.generated_code_size_in_bytes
    return Program(text, *sizes, frozenset(compiled._executable._kept_var_idx))


def early(lowered):
    """The Program as soon as libtpu has it, without machine code, which it goes on to write: for `apart` alone. Another
    compiler, or a libtpu that dumps otherwise, is waited for."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dumps = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiling = futures.ThreadPoolExecutor(1).submit(lowered.compile, dumps)
        while not futures.wait([compiling], timeout=0.1).done:
            # These are complete when the next file, of the same name and more, has begun.
            if any(Path(folder).glob("*.after_optimizations_after_buffer_assignment.txt")):
                (text,), (memory,) = (
                    list(Path(folder).glob(f"*.after_optimizations{of}.txt")) for of in ("", "-buffer-assignment")
                )
                kept = frozenset(lowered._lowering.compile_args["kept_var_idx"])
                return Program(text.read_text(), *placed(memory.read_text()), None, kept)
        return _finished(compiling.result())


def placed(text):
    """(bytes of arguments, of results that lie nowhere among these, of temporaries) in a chip's main memory, of a
    buffer assignment's text. `memory_analysis` counts these and, as temporaries, 16 KiB more; constants are code."""
    arguments, results, temporaries = 0, 0, 0
    line = r"^allocation \d+: size (\d+), (?!color [1-9])(?:page \d+, )?(.*)$"  # other colours are other memories
    for size, what in re.findall(line, text, re.MULTILINE):
        if what.startswith("parameter"):
            arguments += int(size)
        elif "maybe-live-out" in what or what.startswith("output"):
            results += int(size)
        elif what.startswith("preallocated-temp"):
            temporaries += int(size)
    return arguments, results, temporaries


def apart(function, *given) -> Any:
    """function(*given), in a process of its own that ends with the answer, whatever still runs there. An exception
    there is one here. UserError where the process ended without an answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, given), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the compiler's process ended without an answer (exit status {process.exitcode}); -9 is most often a lack "
            "of memory on this machine."
        ) from None
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(pipe, function, given):
    try:
        answer = function(*given)
    except Exception as e:
        if not isinstance(e, UserError):
            e.add_note("".join(traceback.format_tb(e.__traceback__)))
        answer = e
    pipe.send(answer)
    pipe.close()
    os._exit(0)
