"""What a machine of several sees over ssh, as JSON: run on one host, with the address of another."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.cluster.keys_folder import ensure_keys, read_box_keys
from orchestrator.cluster.launcher_file import Box
from orchestrator.cluster.ssh import Ssh, push_files
from orchestrator.each_box import each_box
from placement.errors import PotluckError


def box(name: str, address: str) -> Box:
    return Box(name, address, "root", 22, None, "~/potluck/.venv", None, None, None)


def said(attempt: Callable[[], object]) -> str:
    try:
        return f"no error: {attempt()!r}"
    except PotluckError as error:
        return str(error)


def main(here: str, there: str, third: str) -> None:
    home = Path.home()
    known = home / ".ssh" / "known_hosts"
    other, own = box("den", there), box("study", here)
    found: dict[str, object] = {}
    with Ssh(connect_timeout_s=2) as ssh:
        answer = ssh.run(other, "hostname; cat; echo oh >&2; exit 3", stdin=b"given \xff\n")
        found["answer"] = [answer.code, answer.stdout.decode("latin-1"), answer.reason]
        control = next(word for word in ssh.command(other, "true") if word.startswith("ControlPath="))
        sockets = Path(control.partition("=")[2]).parent
        found["sockets"] = len(list(sockets.glob("box-*")))
        ssh.check(other, "true")
        found["home"] = ssh.check(other, "pwd").decode().strip()
        found["own_home"] = ssh.check(own, "hostname; pwd").decode().split()
        found["fails"] = said(lambda: ssh.check(other, "echo first >&2; echo 'no room' >&2; false"))
        found["slow"] = said(lambda: ssh.run(other, "exec sleep 60", timeout_s=0.5))
        source = home / "a file"
        source.write_bytes(bytes(range(256)) * 4096)
        ssh.copy(other, source, "~/in 'here'/a copy")
        same = "cmp \"$HOME/in 'here'/a copy\" - && echo same"
        with source.open("rb") as file:
            found["copied"] = ssh.check(other, same, stdin=file).decode().strip()
        found["no_source"] = said(lambda: ssh.copy(other, home / "none", "~/x"))

        keys = ensure_keys(home / ".potluck" / "home", "home", {"study": here, "den": there})
        push_files(ssh, other, "home", keys.files_of("den", {"study"}))
        modes = 'cd ~/.potluck && find . -printf "%m %y %p\\n" | sort -k 3'
        found["pushed"] = ssh.check(other, modes).decode().splitlines()
        push_files(ssh, own, "there", keys.files_of("study", {"study"}))
        found["own_keys"] = read_box_keys(home / ".potluck" / "there", "study").own == keys.pairs["study"]

        refused = replace(other, name="refused", port=23)
        silent = replace(other, name="silent", address=there.rpartition(".")[0] + ".77")
        at_once = threading.Barrier(3, timeout=60.0)

        def name_of(box: Box) -> str:
            at_once.wait()
            return ssh.check(box, "hostname").decode().strip()

        done, failed = each_box([other, refused, silent], name_of)
        found["each"] = {name: str(result) for name, result in {**done, **failed}.items()}
        found["no_key"] = said(lambda: ssh.run(replace(other, user="nobody"), "true"))
        found["missing_key"] = said(lambda: ssh.run(replace(other, key_path=home / "none"), "true"))
        open_key = home / "open_key"
        open_key.write_bytes((home / ".ssh" / "id_ed25519").read_bytes())
        open_key.chmod(0o644)
        (home / ".ssh" / "id_ed25519").rename(home / ".ssh" / "put_away")
        found["open_key"] = said(lambda: ssh.run(replace(box("third", third), key_path=open_key), "true"))
        (home / ".ssh" / "put_away").rename(home / ".ssh" / "id_ed25519")
        lines = known.read_text().splitlines()
        known.write_text("".join(f"{line}\n" for line in lines if not line.startswith(third)))
        found["unknown"] = said(lambda: ssh.run(box("third", third), "true"))
        wrong = next(line for line in lines if line.startswith(there)).replace(there, third)
        known.write_text(f"{wrong}\n")
        found["changed"] = said(lambda: ssh.run(box("third", third), "true"))
    found["sockets_left"] = sockets.exists()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
