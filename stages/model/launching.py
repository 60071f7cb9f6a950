"""Starting a stage in several processes, by torchrun."""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported, in the processes too

# isort: split
import contextlib
import io
import logging
import shlex
import signal
import tempfile
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import config_from_args, determine_local_world_size, parse_args, run

from stages.pipeline.errors import BusyError, LostError, StoppedError, UserError

STOP_SECONDS = 120
"""How long processes that are told to stop may take: the step or the validation they are at is finished first."""


def launch(options: str, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` in as many processes as `options`, arguments of torchrun, say.

    Raises:
        UserError: torchrun does not take the options, or a process failed: what it said, of its class, or how it died.
    """
    logging.disable()  # torchrun's own: its loggers each have a level, and what matters is said here
    with tempfile.TemporaryDirectory() as folder:  # where processes leave what they have to say
        ours = ["--shutdown-timeout", str(STOP_SECONDS), "--log-dir", folder]
        words = _checked(options, ours, [module, *arguments])
        try:
            run(parse_args(words))
        except SignalException:
            raise StoppedError("finetune: stopped; run `dvc repro` to go on from the last state") from None
        except ChildFailedError as failed:
            raise _cause(failed) from None
        except Exception as error:  # of torchrun: it finds no port, or the other machines are gone
            raise UserError(f"finetune: torchrun {options}: {_last_line(str(error))}") from None


def _checked(options: str, ours: Sequence[str], command: Sequence[str]) -> list[str]:
    """The words of torchrun's command line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            words = [*ours, *shlex.split(options), "-m", *command]
            arguments = parse_args(words)
            processes = determine_local_world_size(arguments.nproc_per_node)
            if processes < 1 or [arguments.training_script, *arguments.training_script_args] != list(command):
                raise ValueError("it wants options alone, and one process or more")
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
            config_from_args(parse_args(words))  # only to see whether it can; it changes what it is given
    except (SystemExit, ValueError, AssertionError) as error:
        reason = _last_line(said.getvalue()).partition(" error: ")[2] or _last_line(str(error))
        raise UserError(f"params.yaml: finetune.launch: torchrun does not take '{options}': {reason}") from None
    return words


def _cause(failed: ChildFailedError) -> UserError:
    """What the first process to fail said, or how it died; the others fail because of it."""
    failures = sorted(failed.failures.items(), key=lambda item: item[1].exitcode == LostError.exit_code)
    rank, failure = failures[0]
    if failure.error_file_data.get("timestamp"):
        kinds = {kind.exit_code: kind for kind in (BusyError, StoppedError)}
        return kinds.get(failure.exitcode, UserError)(failure.message)
    how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    return UserError(f"finetune: process {rank} died ({how}); run `dvc repro` to go on from the last state")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
