"""A Ray cluster of a test's own: a head and nodes that are processes of this machine, to be killed and to come and go.

Only processes started here are ever signalled: every one leads a session of its own.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
GIB = 1 << 30
FAKE_HEAD = "f" * 51 + "00000"


def free_ports(count: int) -> list[int]:
    """Ports outside of those that Ray gives to workers (10002 to 19999)."""
    listeners: list[socket.socket] = []
    for port in range(21_000 + os.getpid() % 5000, 60_000):
        with contextlib.suppress(OSError):
            listeners.append(socket.create_server(("127.0.0.1", port)))
        if len(listeners) == count:
            break
    found = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return found


class OwnCluster:
    """The head is up when this is made; `close` ends everything."""

    def __init__(self, folder: Path, *, cpus: int = 2, gpus: int = 0, autoscaling: Path | None = None, port: int = 0):
        """autoscaling: Ray's YAML for nodes that come and go by themselves; it names `port`."""
        self._folder, self._nodes = folder, 0
        spare = free_ports(6)
        port = port or spare.pop()
        self.address = f"127.0.0.1:{port}"
        named = ("node-manager", "object-manager", "ray-client-server", "dashboard-agent-listen", "metrics-export")
        others = [number for number in spare if number != port]
        options = [f"--{name}-port={number}" for name, number in zip(named, others, strict=False)]
        environment = dict(ENVIRONMENT)
        if autoscaling is not None:
            options.append(f"--autoscaling-config={autoscaling}")
            environment |= {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                # By which the fake provider knows the head.
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
            }
        head = ["--head", f"--port={port}", "--include-dashboard=false", *options]
        self._processes = [self._start(head, cpus, gpus, environment)]
        deadline = time.monotonic() + 120
        # The port answers before the cluster does; this is the last line that the head prints.
        while "will now block" not in self.log():
            assert self._processes[0].poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.5)

    def add_node(self, *, cpus: int = 2, gpus: int = 0) -> subprocess.Popen[bytes]:
        """Another node; it may take some seconds until it is there."""
        node = self._start([f"--address={self.address}"], cpus, gpus, ENVIRONMENT)
        self._processes.append(node)
        return node

    def kill_node(self, node: subprocess.Popen[bytes]) -> None:
        """As when its power goes: everything on it, at once."""
        for child in psutil.Process(node.pid).children(recursive=True):
            kill(child.pid)
        kill(node.pid)
        node.wait()

    def log(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("node-*.log")))

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def _start(self, options: list[str], cpus: int, gpus: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        self._nodes += 1
        command = [RAY, "start", "--block", *options, f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        command += [f"--memory={8 * GIB}", f"--object-store-memory={GIB // 5}"]
        with open(self._folder / f"node-{self._nodes}.log", "w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def kill(pid: int) -> bool:
    """SIGKILL; whether there was such a process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def workers(cluster_address: str, *titles: str) -> list[int]:
    """Worker processes of this cluster whose title (class, or the call they are at) contains one of `titles`."""
    found, port = [], ":" + cluster_address.rpartition(":")[2]
    for raylet in psutil.process_iter(["cmdline"]):
        command = raylet.info["cmdline"] or []
        # Whatever address of this machine the head chose, the port is the cluster's.
        gcs = next((part for part in command if part.startswith("--gcs-address=")), "")
        if command and "raylet" in command[0] and gcs.endswith(port):
            found += titled(raylet.children(), *titles)
    return found


def titled(processes: list[psutil.Process], *titles: str) -> list[int]:
    """Of these, the workers whose title contains one of `titles`."""
    found = []
    for process in processes:
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and any(part in title for part in titles):
            found.append(process.pid)
    return found
