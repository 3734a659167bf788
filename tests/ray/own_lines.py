"""Lines between sites and their coordinator that can be slow or cut, for tests of what happens then."""

import socket
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Line:
    """Listens at `port` of this machine and passes every byte on to `target`, another port of it, and back.

    delay: seconds each way. rate: bytes a second each way, 0 for any. up: whether anything passes.
    """

    target: int
    delay: float = 0.0
    rate: float = 0.0
    up: bool = True
    _listening: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # Closing alone does not wake who waits in `accept`.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 14):
                time.sleep(self.delay + (len(data) / self.rate if self.rate else 0.0))
                while not self.up:
                    time.sleep(0.02)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
