"""Starting a stage in several processes, by torchrun."""

import contextlib
import io
import logging
import os
import shlex
import signal
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import config_from_args, determine_local_world_size, parse_args, run

from stages.pipeline.errors import StoppedError, UserError

OWN_CODES = (2, 75, 130)
"""Exit codes with which a process has said already what is wrong."""


def launch(options: str, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` in as many processes as `options`, arguments of torchrun, say.

    Raises:
        UserError: torchrun does not take the options, or a process died.
        SystemExit: a process ended with a code of its own.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            words = [*shlex.split(options), "-m", module, *arguments]
            processes = determine_local_world_size(parse_args(words).nproc_per_node)
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
            config_from_args(parse_args(words))  # only to see whether it can; it changes what it is given
    except (SystemExit, ValueError) as error:
        reason = (said.getvalue().strip().splitlines() or [str(error)])[-1]
        raise UserError(f"params.yaml: finetune.launch: torchrun does not take '{options}': {reason}") from None
    try:
        run(parse_args(words))
    except SignalException:
        raise StoppedError("finetune: stopped; the state is saved, run `dvc repro` to go on") from None
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        for code in OWN_CODES:
            if code in codes.values():
                raise SystemExit(code) from None
        rank, code = next(((r, c) for r, c in codes.items() if c < 0), next(iter(codes.items())))
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UserError(
            f"finetune: process {rank} died ({how}); run `dvc repro` to go on from the last state"
        ) from None
