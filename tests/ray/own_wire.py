"""A recorder between sites and their coordinator: passes every byte on and keeps what sites sent."""

import socket
import threading


class Wire:
    """Listens at `port` of an address of this machine and passes on to `target`, another port of it."""

    def __init__(self, address: str, target: int) -> None:
        self._target = (address, target)
        self._listening = socket.create_server((address, 0))
        self.port: int = self._listening.getsockname()[1]
        self.sent: list[bytearray] = []
        """What came from sites, one array a connection."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            kept = bytearray()
            self.sent.append(kept)
            threading.Thread(target=_pass_on, args=(near, far, kept), daemon=True).start()
            threading.Thread(target=_pass_on, args=(far, near, bytearray()), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    try:
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


def records_of(sent: bytes) -> list[int]:
    """The kinds of the TLS records that the bytes are made of. Raises `ValueError` where they are something else."""
    kinds, place = [], 0
    while place < len(sent):
        kind, version, length = sent[place], sent[place + 1 : place + 3], int.from_bytes(sent[place + 3 : place + 5])
        if kind not in (20, 21, 22, 23) or version not in (b"\x03\x01", b"\x03\x03") or length > (1 << 14) + 256:
            raise ValueError(f"no TLS record at byte {place}")
        kinds.append(kind)
        place += 5 + length
    return kinds
