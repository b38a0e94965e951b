"""Emulates DynamoDB's API over HTTP: moto behind one lock, for stock moto lets two conditional writers win.

python dynamodb_main.py PORT

It does not show: throttling, transaction conflicts, the idempotency of a client's token, expiry by TTL, late
reads of an index, hot partitions.
"""

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class Quiet(WSGIRequestHandler):
    def log_request(self, *arguments: Any) -> None:
        pass


def main() -> None:
    application, lock = DomainDispatcherApplication(create_backend_app), threading.RLock()

    def one_at_a_time(environment: Any, start: Any) -> Iterable[bytes]:
        with lock:
            return [b"".join(application(environment, start))]

    run_simple(
        "127.0.0.1", int(sys.argv[1]), one_at_a_time, threaded=True, use_reloader=False, request_handler=Quiet
    )


if __name__ == "__main__":
    main()
