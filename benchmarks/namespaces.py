"""Hosts on one machine, as network namespaces with an ssh server each: a cluster without the boxes.

A host has its own network, processes, mounts, name and shared memory. Its home is a folder of its own, so
keys and settings do not mix. All hosts are the user root, who needs no password there and whose ssh key works
from each to each. Hosts share the file system, the clock, the memory and the processors.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDED = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "rsync")
SSHD = "/usr/sbin/sshd"
START_TIMEOUT_S = 20.0


def why_no_hosts() -> str | None:
    """What keeps this machine from having such hosts, None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if not os.path.exists(SSHD):
        missing.append("sshd")
    if missing:
        return f"{', '.join(missing)} missing: apt-get install openssh-server rsync iproute2 util-linux"
    probe = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount", "--uts", "--ipc", "ip", "link", "set", "lo", "up"],
        capture_output=True,
        check=False,
    )
    return None if probe.returncode == 0 else "this system does not let root make network namespaces"


@dataclass(frozen=True, slots=True)
class Host:
    """One host.

    Attributes:
        name: its host name.
        folder: its own: home/ is its user's home, tmp/ its TMPDIR.
        namespace: the name `ip netns` knows it by.
        cable: the bridge's end of its cable, outside of it; for `tc`, what the host receives.
        init: pid of its first process, seen from outside.
    """

    name: str
    address: str
    folder: Path
    namespace: str
    cable: str
    init: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def command(self, command: str | Sequence[str]) -> list[str]:
        """What runs `command` there, as its user: a text by a shell that has the host's settings."""
        inside = ["bash", "-c", f". {self.home}/.bashrc; {command}"] if isinstance(command, str) else command
        enter = ["nsenter", "-t", str(self.init), "--net", "--pid", "--mount", "--uts", "--ipc", "--"]
        return [*enter, "env", *(f"{name}={value}" for name, value in self._settings().items()), *inside]

    def run(
        self, command: str | Sequence[str], *, check: bool = True, timeout_s: float = 120.0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run it there to its end.

        Raises:
            RuntimeError: it failed, unless `check` is false; the message has what it printed.
        """
        more = {"stdin": subprocess.DEVNULL} | more if "input" not in more else more
        done = subprocess.run(
            self.command(command), capture_output=True, text=True, timeout=timeout_s, check=False, **more
        )
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def popen(self, command: str | Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """Start it there. The process seen here only enters the host: end what it runs there by `pids`."""
        return subprocess.Popen(self.command(command), text=True, **more)

    def pids(self) -> dict[int, str]:
        """Pid as seen from outside -> command line, of all that runs there."""
        try:
            own = os.stat(f"/proc/{self.init}/ns/pid").st_ino
        except OSError:
            return {}
        found = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal():
                with suppress(OSError):
                    if os.stat(f"/proc/{entry.name}/ns/pid").st_ino == own:
                        line = Path(f"/proc/{entry.name}/cmdline").read_bytes()
                        found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def cut(self) -> None:
        """Pull its network cable."""
        _ip("link", "set", self.cable, "down")

    def restore(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self.cable, "up")

    def shape(self, rate: str, *, burst: str = "256kb", latency: str = "50ms") -> None:
        """Limit what it sends and what it receives to `rate`, such as 1gbit."""
        limit = ["root", "tbf", "rate", rate, "burst", burst, "latency", latency]
        _tool("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", *limit)
        _tool("tc", "qdisc", "replace", "dev", self.cable, *limit)

    def suspend(self) -> None:
        """Stop all that runs there, as a box that sleeps."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all of it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Pull its plug: all that runs there is gone at once."""
        with suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        _wait(lambda: not os.path.exists(f"/proc/{self.init}"), f"{self.name}: the end of its processes")

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _settings(self) -> Mapping[str, str]:
        return {
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
        }


@contextmanager
def hosts(
    count: int, net: str, *, folder: Path | None = None, venv: Path | None = None
) -> Iterator[tuple[Host, ...]]:
    """`count` hosts named h1, h2, … at .1, .2, … of a network; .254 is this machine.

    Args:
        net: such as 10.77.0.0/24. Two sets of hosts at once need two networks.
        folder: where their homes are made; removed at the end. Ray's sockets lie below: keep it short.
        venv: what ~/potluck/.venv is on each; the environment of this interpreter by default.

    Raises:
        RuntimeError: this machine cannot have such hosts, or one did not start.
    """
    reason = why_no_hosts()
    if reason is not None:
        raise RuntimeError(reason)
    prefix = net.partition("/")[0].rsplit(".", 1)[0]
    tag = f"pk{prefix.split('.')[1]}-{prefix.split('.')[2]}"
    with ExitStack() as stack:
        stack.enter_context(_alone(tag))
        root = Path(tempfile.mkdtemp(prefix="pk", dir="/tmp")) if folder is None else folder
        root.mkdir(exist_ok=True)
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        bridge = f"{tag}b"
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{prefix}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        user_key = _new_key(root / "user_key")
        names = [f"h{index}" for index in range(1, count + 1)]
        addresses = [f"{prefix}.{index}" for index in range(1, count + 1)]
        host_keys = {name: _new_key(root / f"{name}_key") for name in names}
        known = "".join(f"{a} {host_keys[n].public}\n" for n, a in zip(names, addresses, strict=True))
        listed = "".join(f"{a} {n}\n" for n, a in zip(names, addresses, strict=True))
        made = []
        for name, address in zip(names, addresses, strict=True):
            home = _make_home(root / name, user_key, known, venv or Path(sys.prefix))
            namespace, cable = f"{tag}{name}", f"{tag}{name}v"
            etc = Path("/etc/netns") / namespace
            etc.mkdir(parents=True, exist_ok=True)
            stack.callback(shutil.rmtree, etc, ignore_errors=True)
            (etc / "passwd").write_text(_passwd(home))
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{listed}")
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "del", namespace)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", cable, "master", bridge, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            made.append(_start(stack, name, address, root, namespace, cable, host_keys[name].path))
        for host in made:
            _wait(lambda host=host: _answers(host), f"{host.name}: its ssh server")  # type: ignore[misc]
        yield tuple(made)


@contextmanager
def _alone(tag: str) -> Iterator[None]:
    """Wait until no other process has hosts in this network, and remove what a killed one left."""
    with open(f"/run/lock/{tag}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for namespace in os.listdir("/run/netns") if os.path.isdir("/run/netns") else ():
            if namespace.startswith(f"{tag}h"):
                for pid in _pids_in(namespace):
                    os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "del", namespace)
        if os.path.exists(f"/sys/class/net/{tag}b"):
            _ip("link", "del", f"{tag}b")
        yield


@dataclass(frozen=True, slots=True)
class _Key:
    path: Path
    public: str


def _new_key(path: Path) -> _Key:
    _tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
    return _Key(path, path.with_name(f"{path.name}.pub").read_text().strip())


def _make_home(folder: Path, key: _Key, known: str, venv: Path) -> Path:
    home, ssh = folder / "home", folder / "home" / ".ssh"
    for each in (ssh, folder / "tmp", folder / "run", home / "potluck"):
        each.mkdir(parents=True)
    ssh.chmod(0o700)
    (folder / "run").chmod(0o700)
    shutil.copy(key.path, ssh / "id_ed25519")
    (ssh / "authorized_keys").write_text(f"{key.public}\n")
    (ssh / "known_hosts").write_text(known)
    (home / "potluck" / ".venv").symlink_to(venv)
    # Commands over ssh and of Ray's launcher find this machine's environment as a user's login would.
    (home / ".bashrc").write_text(
        f"export PATH={venv}/bin:$PATH TMPDIR={folder}/tmp RAY_TMPDIR={folder}/tmp RAY_USAGE_STATS_ENABLED=0 "
        "OMP_NUM_THREADS=1\n"
    )
    return home


def _passwd(home: Path) -> str:
    """This machine's users, with another home for root: ssh takes `~` from here."""
    lines = Path("/etc/passwd").read_text().splitlines()
    return "".join(
        f"root:x:0:0:root:{home}:/bin/bash\n" if line.startswith("root:") else f"{line}\n" for line in lines
    )


def _start(
    stack: ExitStack, name: str, address: str, root: Path, namespace: str, cable: str, key: Path
) -> Host:
    folder = root / name
    settings = folder / "sshd_config"
    settings.write_text(
        f"ListenAddress {address}\nHostKey {key}\nAuthorizedKeysFile {folder}/home/.ssh/authorized_keys\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        "MaxStartups 50:30:100\nUseDNS no\nPidFile none\nSubsystem sftp internal-sftp\n"
    )
    os.makedirs("/run/sshd", exist_ok=True)
    inside = f"hostname {name}; mount -t tmpfs -o size=1g tmpfs /dev/shm; exec {SSHD} -D -e -f {settings}"
    isolate = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "--kill-child", "--"]
    with (folder / "sshd.log").open("wb") as log:
        outer = subprocess.Popen(
            # However this process ends, its hosts end with it.
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "ip",
                "netns",
                "exec",
                namespace,
                *isolate,
                "sh",
                "-c",
                inside,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def end() -> None:
        # The outer one reaps the first and ends then. Were it killed, this machine's own first process would
        # have to, which may take its time.
        if first and outer.poll() is None:
            os.kill(first[0], signal.SIGKILL)
        else:
            outer.kill()
        outer.wait()
        _wait(lambda: not _pids_in(namespace), f"{name}: the end of its processes")

    first: list[int] = []
    stack.callback(end)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    _wait(lambda: bool(children.read_text().split()), f"{name}: its first process")
    init = int(children.read_text().split()[0])
    first.append(init)
    return Host(name, address, folder, namespace, cable, init)


def _pids_in(namespace: str) -> list[str]:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return found.stdout.split()


def _answers(host: Host) -> bool:
    target = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=2", f"root@{host.address}", "hostname"]
    done = host.run(["ssh", *target], check=False)
    return done.stdout.strip() == host.name


def _wait(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {START_TIMEOUT_S:g} s in vain for {what}")
        time.sleep(0.02)


def _ip(*arguments: str) -> None:
    _tool("ip", *arguments)


def _tool(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
