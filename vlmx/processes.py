"""Several processes of one run: how they find each other, and how they stop when one of them is gone."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback

import jax
from jax._src import distributed  # jax offers no public handle of the service that its processes share

from vlmx.errors import LOST, UserError

BEAT, PATIENCE = 1.0, 30.0  # seconds between signs of life, and without one until a process counts as gone
_broken, _leaving = threading.Event(), threading.Lock()
_where = {}  # process -> its host and pid


def begin(coordinator, process=None, processes=None):
    """Make this process one of several; to be called before anything else of jax.

    Args: coordinator: host:port of process 0, beside this one's number and how many there are; "auto": a TPU pod, Slurm
    or Open MPI tells all three; None or "": it is alone.
    """
    if not coordinator:
        return
    if coordinator != "auto" and not (process is not None and processes and 0 <= process < processes):
        raise UserError(
            f"--coordinator={coordinator}: expected --processes, how many there are, and --process, the number of this "
            f"one, from 0; got --processes={processes} --process={process}."
        )
    told = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    _where[0] = coordinator
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    jax.distributed.initialize(**({} if coordinator == "auto" else told))
    if jax.process_count() > 1:
        threading.Thread(target=_watch, daemon=True).start()


@contextlib.contextmanager
def guard():
    """Around the work: where one of several processes fails, it says why and leaves at once. (Left to itself it would
    wait for the others at jax's exit, and they for it in the next step.)"""
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):  # very likely since another is gone: _watch will say which
            _broken.set()
            time.sleep(PATIENCE)
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        _leave("", error.code if isinstance(error, SystemExit) else 1)


def _watch():
    """Each process tells the others, through the service in process 0, that it lives."""
    client, me, n = distributed.global_state.client, jax.process_index(), jax.process_count()
    last, count = {}, 0
    client.key_value_set(f"vlmx/where/{me}", f"{socket.gethostname()}, pid {os.getpid()}", allow_overwrite=True)
    _where.update({i: client.blocking_key_value_get(f"vlmx/where/{i}", 60_000) for i in range(n)})
    while True:
        try:
            client.key_value_set(f"vlmx/alive/{me}", str(count), allow_overwrite=True)
            signs = {int(key.rsplit("/", 1)[1]): sign for key, sign in client.key_value_dir_get("vlmx/alive/")}
        except jax.errors.JaxRuntimeError:
            _leave(_lost([0], n), LOST)
        now, count = time.monotonic(), count + 1
        for i, sign in signs.items():
            if last.get(i, ("", 0))[0] != sign:
                last[i] = sign, now
        patience = PATIENCE / 3 if _broken.is_set() else PATIENCE
        gone = [i for i, (_, heard) in last.items() if now - heard > patience]
        if gone:
            _leave(_lost(gone, n), LOST)
        time.sleep(BEAT)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_):
    """Where process 0 is gone, and the service with it, jax aborts this one from a thread of its own, without an
    exception and too soon for _watch. This comes before that end, and is silent where process 0 still answers."""
    state = distributed.global_state
    host, port = state.coordinator_address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE / 3).close()
    except OSError:
        _leave(_lost([0], state.num_processes), LOST)


def _lost(gone, n):
    names = ", ".join(f"process {i} of {n} ({_where[i]})" for i in gone)
    return f"\nerror: {names} is gone. The same command on all of them goes on from the last checkpoint."


def _leave(message, code):
    _leaving.acquire()  # never released: one thread says why
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
