"""Measure in a process of its own, so that peaks of memory, thread pools and compiled networks do not mix.

`measured` starts ``python -m ssai3d_rt.bench.child``, hands it a task with its arguments as JSON, and returns what the
task returned, with the peaks. A task that fails as expected comes back as the same error; a process that dies says how.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ssai3d_rt import errors
from ssai3d_rt.bench.memory import DeviceWatch, resident_peak_bytes
from ssai3d_rt.errors import BackendError, Ssai3dError

TASKS = {
    "tiles": ("ssai3d_rt.bench.tiles", "time_tiles"),
    "restore": ("ssai3d_rt.bench.endtoend", "time_restore"),
    "upstream": ("ssai3d_rt.bench.upstream", "time_upstream"),
    "machine": ("ssai3d_rt.bench.machine", "measure_machine"),
}
"""What a child can do: module and function; each takes and returns plain JSON values."""


THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What libraries read when they are loaded."""


def measured(task: str, **arguments: Any) -> dict[str, Any]:
    """Run a task in a process of its own.

    Parameters
    ----------
    task
        A name of `TASKS`.
    arguments
        Of the task, plain JSON values; ``threads`` also tells the libraries that ask the environment.

    Returns
    -------
    What the task returns, and ``peak_bytes`` (resident, of that process) and ``device_bytes`` (None without a GPU).

    Raises
    ------
    Ssai3dError
        What the task raised, as its own class.
    BackendError
        The process died.
    """
    with tempfile.TemporaryDirectory(prefix="ssai3d-bench-") as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, "-m", "ssai3d_rt.bench.child", task, str(answer)]
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)  # as the command line has it
        if arguments.get("threads") is not None:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(arguments["threads"]))
        given = json.dumps(arguments)
        with DeviceWatch() as device:
            done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
        if not answer.is_file():
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise BackendError(f"the process that measured died with status {done.returncode}: {said}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "failed" in found:
        kind = getattr(errors, found["failed"], Ssai3dError)
        raise (kind if kind is not errors.MissingPackageError else BackendError)(found["message"])
    return found | {"device_bytes": device.peak_bytes}


def main(task: str, answer: Path) -> None:
    """Do one task; the arguments come as JSON on stdin, the answer goes to a file."""
    logging.getLogger("ssai3d_rt").setLevel(logging.ERROR)
    module, function = TASKS[task]
    try:
        found = getattr(importlib.import_module(module), function)(**json.load(sys.stdin))
        found["peak_bytes"] = resident_peak_bytes()
    except Ssai3dError as error:
        found = {"failed": type(error).__name__, "message": str(error)}
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
