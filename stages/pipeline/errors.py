"""What went wrong, told in one line to the person who can mend it."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in data, parameters or surroundings; its text says where, what, and what to do next."""

    exit_code = 2


class BusyError(UserError):
    """Another process is at it; later it may go (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class LostError(UserError):
    """Another process of the same stage is gone, which says less than what became of that one (EX_UNAVAILABLE)."""

    exit_code = 69


class StoppedError(UserError):
    """Told to stop, and everything is saved (128 + SIGINT, as shells have it)."""

    exit_code = 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `UserError`, or a file that cannot be read or written, into one line on stderr and its exit code (2).

    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        _exit(str(error), error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{error.filename}: {(error.strerror or 'cannot be used').lower()}", UserError.exit_code)


def _exit(message: str, code: int) -> None:
    line = " ".join(message.split())
    rank = os.environ.get("RANK")
    told = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if rank is not None and told:  # of several processes under torchrun: it reads this, and the cause is said once
        Path(told).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    elif rank in (None, "0"):
        print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)
