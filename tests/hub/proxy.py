"""A proxy that makes tunnels (CONNECT) for whoever says who they are, to hosts that only it knows."""

import socket
import threading
from base64 import b64encode
from contextlib import suppress


class Proxy:
    """`hosts`: name → address; `ports`: those that lie elsewhere there, the only ones that are let out to, if
    any are given. `asked`: what was tunnelled to; `refused`: how often it was not."""

    def __init__(
        self, hosts: dict[str, str], user: str, password: str, ports: dict[int, int] | None = None
    ) -> None:
        self._hosts, self._ports = hosts, ports
        self._who = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        self.asked, self.refused = list[tuple[str, int]](), 0
        self._server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            said = b""
            while b"\r\n\r\n" not in said and (data := client.recv(4096)):
                said += data
            first, *headers = said.decode().split("\r\n")
            method, target, _ = first.split(" ")
            host, _, port = target.rpartition(":")
            known = f"proxy-authorization: {self._who}".lower() in (header.lower() for header in headers)
            let_out = self._ports is None or int(port) in self._ports
            if method != "CONNECT" or not known or host not in self._hosts or not let_out:
                self.refused += 1
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            self.asked.append((host, int(port)))
            lies = self._ports[int(port)] if self._ports else int(port)
            with socket.create_connection((self._hosts[host], lies)) as there:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pour, args=(there, client), daemon=True)
                back.start()
                _pour(client, there)
                back.join()


def _pour(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            to.sendall(data)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)
