"""What went wrong, told in one line to the person who can mend it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in data, parameters or surroundings; its text says where, what, and what to do next."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `UserError`, or a file that cannot be read or written, into one line on stderr and exit code 2.

    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        _exit(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _exit(f"{error.filename}: {(error.strerror or 'cannot be used').lower()}")


def _exit(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
