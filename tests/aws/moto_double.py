"""AWS as moto has it, in a child process behind one lock: an emulator, for tests of adapters.

Stock moto lets two conditional writes win; behind the lock one request is over before the next begins. What
it does not prove: throttling, TransactionConflict, lost answers (tests put them in at the client), hot
partitions, reads that lag, an index that lags, signatures and policies, limits of size other than an item's
400 KB, schedules that fire (none ever does), IoT's retained messages and their expiry (a publish is only
noted down), S3's 409, TTLs, prices. Its CloudFormation is no evidence of anything.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 60.0
"""Seconds in which it has to be there."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def running(port: int) -> Iterator[str]:
    """→ its URL. It ends with this process, however that ends."""
    command = [sys.executable, "-m", "tests.aws.moto_double", str(port)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE
        while not is_there(url):
            assert child.poll() is None, "moto ended before it began: is it installed (pip install .[dev])?"
            assert time.monotonic() < until, "moto does not begin"
            time.sleep(0.05)
        yield url
    finally:
        assert child.stdin is not None
        child.stdin.close()  # which it reads until it ends
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def is_there(url: str) -> bool:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", "/moto-api/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application, lock = DomainDispatcherApplication(create_backend_app), threading.RLock()

    def one_at_a_time(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with lock:
            return [b"".join(application(environ, start_response))]

    class Quiet(WSGIRequestHandler):
        disable_nagle_algorithm = True

        def log_request(self, *_: object) -> None:
            pass

    server = make_server("127.0.0.1", port, one_at_a_time, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends when who started this does


if __name__ == "__main__":
    serve(int(sys.argv[1]))
