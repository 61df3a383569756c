"""Commands on a cluster's boxes, by the system's own ssh: its settings, known hosts and agent count.

Nothing is asked at the terminal: a box that would need a password, or whose host key is not known, is said to
do so in one line. What is secret goes through a command's standard input, never into its arguments, where
other users of the box could read it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from orchestrator.cluster.launcher_file import STATE_FOLDER, Box, remote_folder
from orchestrator.run_folder import run_folder
from placement.errors import BoxUnreachable
from placement.files.quote import last_line, one_line

CONNECT_TIMEOUT_S = 5
COMMAND_TIMEOUT_S = 120.0
# What ssh itself returns where it cannot connect; a command may return it too.
_SSH_FAILED = 255


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command on a box did."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def reason(self) -> str:
        """The last line that it complained with, for a message."""
        return one_line(last_line(self.stderr)) or f"exit code {self.code}"


class Ssh:
    """Runs commands on boxes; one connection a box serves all of them. A context manager."""

    def __init__(self, *, connect_timeout_s: int = CONNECT_TIMEOUT_S) -> None:
        """
        Raises:
            BoxUnreachable: this machine has no ssh.
        """
        if shutil.which("ssh") is None:
            raise BoxUnreachable("this machine has no ssh: install it (apt-get install openssh-client)")
        self._connect_timeout_s = connect_timeout_s
        self._stack = ExitStack()
        # A name of a socket may have a hundred characters, so it lies in no folder of the user's.
        self._folder = self._stack.enter_context(run_folder("/tmp"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        for control in self._folder.glob("box-*") if self._folder.is_dir() else ():
            # A connection knows its own box; the name is needed for the command line alone.
            subprocess.run(
                ["ssh", "-o", f"ControlPath={control}", "-O", "exit", "box"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=10,
                check=False,
            )
        self._stack.close()

    def command(self, box: Box, command: str) -> list[str]:
        """What runs a line of bash on a box; on this machine, where the box is this one."""
        if is_here(box.address):
            return ["bash", "-c", command]
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(self._connect_timeout_s),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "auto",
            "ControlPath": f"{self._folder}/box-%C",
            "ControlPersist": "60",
            "LogLevel": "ERROR",
        }
        words = ["ssh", "-T", "-p", str(box.port)]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        if box.key_path is not None:
            words += ["-i", str(box.key_path)]
        if box.user is not None:
            words += ["-l", box.user]
        return [*words, "--", box.address, f"bash -c {shlex.quote(command)}"]

    def run(
        self,
        box: Box,
        command: str,
        *,
        stdin: bytes | BinaryIO = b"",
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Answer:
        """Run a line of bash on a box to its end, in the home of its user.

        Raises:
            BoxUnreachable: ssh does not get there, or the command takes longer; one line, with what to do.
        """
        here = is_here(box.address)
        if not here:
            check_key(box)
        process = subprocess.Popen(
            self.command(box, command),
            stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path.home() if here else None,
        )
        with process:
            try:
                printed, complaints = process.communicate(
                    stdin if isinstance(stdin, bytes) else None, timeout_s
                )
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise BoxUnreachable(
                        f"{box.at}: no answer within {timeout_s:g} s to {_shown(command)}"
                    ) from None
                raise
        stderr = complaints.decode(errors="replace")
        if process.returncode == _SSH_FAILED and not here:
            raise BoxUnreachable(why_unreachable(box, stderr))
        return Answer(process.returncode, printed, stderr)

    def check(
        self,
        box: Box,
        command: str,
        *,
        stdin: bytes | BinaryIO = b"",
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> bytes:
        """What a command printed that must succeed.

        Raises:
            BoxUnreachable: as `run`, and where the command fails.
        """
        answer = self.run(box, command, stdin=stdin, timeout_s=timeout_s)
        if answer.code:
            raise BoxUnreachable(f"{box.at}: {_shown(command)} failed: {answer.reason}")
        return answer.stdout

    def copy(self, box: Box, local: Path, remote: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Put a file of this machine at `remote` on a box, whole or not at all.

        Raises:
            BoxUnreachable: as `check`, and where the file cannot be read.
        """
        place = quoted_path(remote)
        part = quoted_path(f"{remote}.part")
        try:
            with local.open("rb") as file:
                self.check(
                    box,
                    f'mkdir -p "$(dirname {place})" && cat > {part} && mv -f {part} {place}',
                    stdin=file,
                    timeout_s=timeout_s,
                )
        except OSError as error:
            raise BoxUnreachable(f"cannot read {local}: {error.strerror}") from error


def push_files(ssh: Ssh, box: Box, cluster: str, files: Mapping[str, bytes]) -> None:
    """Put a cluster's secrets into its folder on a box, for ssh's user there alone.

    Args:
        files: path below the folder -> content.

    Raises:
        BoxUnreachable: the box is not reached, or its folder cannot be written.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in sorted({str(Path(name).parent) for name in files} - {"."}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    folder = quoted_path(remote_folder(cluster))
    ssh.check(
        box,
        f"umask 077 && mkdir -p {folder} && chmod 700 {quoted_path(f'~/{STATE_FOLDER}')} {folder} "
        f"&& tar -x -f - --no-same-owner --preserve-permissions -C {folder}",
        stdin=packed.getvalue(),
    )


def quoted_path(path: str) -> str:
    """A path on a box as bash takes it: `~/` is its user's home, nothing else in it has a meaning."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def python_of(box: Box) -> str:
    """The interpreter that Potluck is installed for on a box, as bash takes it."""
    return f"{quoted_path(box.venv)}/bin/python"


def is_here(address: str) -> bool:
    """Whether an IPv4 address is one of this machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def check_key(box: Box) -> None:
    """Raise BoxUnreachable where the key that the file names for a box cannot be used."""
    key = box.key_path
    if key is None:
        return
    if not key.is_file():
        raise BoxUnreachable(
            f"auth.ssh_private_key: {key} is missing: name a private key of yours, or make one with "
            f"`ssh-keygen -t ed25519 -f {key}` and bring it to each box with `ssh-copy-id`"
        )
    if not os.access(key, os.R_OK):
        raise BoxUnreachable(f"auth.ssh_private_key: {key} is not readable for you")


def why_unreachable(box: Box, stderr: str) -> str:
    """What ssh complained of, as one line that says what to do."""
    user = f"{box.user}@" if box.user else ""
    port = f" -p {box.port}" if box.port != 22 else ""
    for pattern, reason in _REASONS:
        if re.search(pattern, stderr, re.IGNORECASE):
            said = reason.format(
                address=box.address,
                at=f"{user}{box.address}",
                key=f" -i {box.key_path}" if box.key_path else "",
                key_path=box.key_path,
                port=port,
                known=box.address if box.port == 22 else f"'[{box.address}]:{box.port}'",
                number=box.port,
                user=box.user or "you",
            )
            return f"{box.at}: {said}"
    return f"{box.at}: ssh failed: {one_line(last_line(stderr)) or 'it said nothing'}"


_REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that this machine knows: if the box was set up anew, run "
        "`ssh-keygen -R {known}`; else something else answers there",
    ),
    (
        "Host key verification failed|No .* host key is known",
        "this machine does not know its host key: run `ssh{port} {at} true`, compare the fingerprint with "
        "that of the box and say yes",
    ),
    ("Connection refused", "ssh refused on port {number}: start sshd there, or give the right ssh_port"),
    (
        "UNPROTECTED PRIVATE KEY FILE",
        "ssh does not take the key {key_path}, which other users can read: run `chmod 600 {key_path}`",
    ),
    (
        "Permission denied|Too many authentication failures",
        "no key accepted for {user}: run `ssh-copy-id{key}{port} {at}`; a key with a passphrase must be in "
        "ssh-agent (`ssh-add`)",
    ),
    (
        "timed out|No route to host|Network is unreachable|Host is down",
        "unreachable: is it on, on this network, and is {address} still its address?",
    ),
    (
        "Connection (closed|reset)|kex_exchange_identification|Broken pipe",
        "it closed the connection of ssh on port {number}: look at the log of sshd there",
    ),
)


def _shown(command: str) -> str:
    """The beginning of a command, for a message."""
    shown = one_line(command)
    return f"`{shown[:60]}…`" if len(shown) > 60 else f"`{shown}`"
