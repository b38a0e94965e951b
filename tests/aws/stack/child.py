"""Processes that end with the one that started them, however that ends. Standard library alone: LocalStack's
own Python imports it too.

The kernel tells a child of its parent's end by the *thread* that made it; so one thread makes all, and lives
as long as the process does.
"""

import ctypes
import queue
import signal
import subprocess
import threading
from concurrent.futures import Future
from typing import Any

PR_SET_PDEATHSIG = 1
PATIENCE = 15.0
"""Seconds that a process has to end when it is asked to."""
_libc = ctypes.CDLL(None, use_errno=True)
_wanted: "queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], list[str], dict[str, Any]]]"
_wanted = queue.SimpleQueue()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def spawn(command: list[str], **how: Any) -> "subprocess.Popen[bytes]":
    """As Popen; the child is killed when this process is gone."""
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_make, name="children", daemon=True)
            _thread.start()
    made: Future[subprocess.Popen[bytes]] = Future()
    _wanted.put((made, command, how))
    return made.result()


def stop(process: "subprocess.Popen[bytes]", patience: float = PATIENCE) -> None:
    """Ask it to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _make() -> None:
    while True:
        made, command, how = _wanted.get()
        try:
            made.set_result(subprocess.Popen(command, preexec_fn=_die_with_parent, **how))
        except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
            made.set_exception(error)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
