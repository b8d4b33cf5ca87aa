"""The one kind of error that is meant for the person who runs vlmx."""

import difflib
import errno

# Exit codes of the command, beside 0 and 1. On the last two the same command goes on from the last checkpoint.
WRONG, PREEMPTED, LOST = 2, 75, 76  # the person's error; SIGTERM, and all is saved; another process of the run is gone

ROOM = "The last checkpoint is whole: make room, or the folder writable, and run the same command; or copy the workdir "
ROOM += "elsewhere and give it as --workdir."
IN_THE_WAY = "Move away the file that stands in place of a folder, or the folder in place of a file."


class UserError(ValueError):
    """Something a person can put right: says what is wrong, where, what was expected and what to do.

    `main` prints its text without a traceback and exits with status 2; so does a notebook show it.
    """

    def _render_traceback_(self):
        """IPython shows these lines in place of a traceback."""
        return [f"error: {self}"]


def unknown(what, name, valid):
    """The error for a name that is not among the valid ones: names the nearest and lists them all.

    Args: what: the kind of thing, such as "optimiser". name: what was given. valid: iterable of valid names.
    Returns: a UserError, for the caller to raise.
    """
    valid = sorted(map(str, valid))
    near = difflib.get_close_matches(str(name), valid, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {name!r}.{hint} Valid: {', '.join(valid) or 'none'}.")


class Unwritable(UserError):
    """A file or a folder that cannot be written: a full disk, no permission, something else in its place."""

    def __init__(self, where, reason, advice=ROOM):
        super().__init__(f"{where} cannot be written: {reason}. {advice}")


def unwritable(error, where):
    """Return the Unwritable of an OSError, or None for one of another kind; where: the path, in case it names none."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return Unwritable(error.filename or where, error.strerror, IN_THE_WAY)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
        return Unwritable(error.filename or where, error.strerror)
    return None
