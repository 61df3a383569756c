"""A cluster file as what starts boxes needs it: both parts agree, or one line says where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.launcher_text import Draft, launcher_text
from placement.errors import ClusterFileError
from tests.orchestrator.cluster.launcher_document import launcher_document, write_launcher


def test_both_parts_are_read(tmp_path: Path) -> None:
    launcher = load_launcher(write_launcher(tmp_path))
    assert (launcher.name, launcher.ray_port, launcher.notes) == ("home", 21000, ())
    assert launcher.head == launcher.box("study")
    assert launcher.head.user == "potluck"
    assert launcher.head.port == 22
    assert launcher.head.key_path == Path("~/.ssh/id").expanduser()
    (attic,) = launcher.others
    assert (attic.at, attic.user, attic.port, attic.venv) == ("attic (192.168.1.11)", "anna", 2222, "/v")
    assert launcher.state_folder == tmp_path / ".potluck" / "home"
    assert launcher.remote_folder == "~/.potluck/home"
    assert launcher.addresses == {"study": "192.168.1.10", "attic": "192.168.1.11"}


def test_the_head_may_be_another_box_than_rays_own_launcher_would_take(tmp_path: Path) -> None:
    document = launcher_document()
    document["metadata"]["potluck"]["head"] = "attic"
    launcher = load_launcher(write_launcher(tmp_path, document))
    assert launcher.head.name == "attic"
    (note,) = launcher.notes
    assert "provider.head_ip is the address of study, the head is attic" in note


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["provider"], ..., "expected Ray's part too .*`potluck init` writes one"),
        (["cluster_name"], ..., "cluster_name: expected a value, found nothing"),
        (["cluster_name"], "../x", "cluster_name: expected letters, digits"),
        (["provider", "type"], "aws", "provider.type: expected 'local', found 'aws'"),
        (["provider", "head_ip"], "10.0.0.1", r"provider.head_ip: .*\(192.168.1.10, 192.168.1.11\)"),
        (["provider", "worker_ips"], ["10.0.0.1"], r"provider.worker_ips\[0\]: .*found '10.0.0.1'"),
        (["provider", "worker_ips"], [], "provider.worker_ips: expected the address of node 'attic' too"),
        (["provider", "worker_ips"], ["192.168.1.11"] * 2, "expected each address once"),
        (["auth"], ..., "auth: expected a value, found nothing"),
        (["auth", "ssh_user"], "-x", "auth.ssh_user: expected letters"),
        (["head_start_ray_commands"], ["a --port=1 --port=2"], r"expected one --port.*found \[1, 2\]"),
        (["head_start_ray_commands"], ["a --port=99999"], "expected one --port, 1 to 65535"),
    ],
)
def test_what_the_parts_do_not_agree_on_is_refused(
    keys: list[str], value: object, message: str, tmp_path: Path
) -> None:
    document = launcher_document()
    target: Any = document
    for key in keys[:-1]:
        target = target[key]
    if value is ...:
        del target[keys[-1]]
    else:
        target[keys[-1]] = value
    path = write_launcher(tmp_path, document)
    with pytest.raises(ClusterFileError, match=message) as found:
        load_launcher(path)
    assert str(found.value).startswith(f"{path}: ")
    assert len(str(found.value).splitlines()) == 1


def test_a_node_that_is_to_be_started_has_an_address(tmp_path: Path) -> None:
    document = launcher_document()
    del document["metadata"]["potluck"]["nodes"][1]["address"]
    with pytest.raises(ClusterFileError, match=r"nodes\[1\].address: expected the IPv4 address of 'attic'"):
        load_launcher(write_launcher(tmp_path, document))


def test_an_unknown_box_is_named(tmp_path: Path) -> None:
    launcher = load_launcher(write_launcher(tmp_path))
    with pytest.raises(ClusterFileError, match=r"expected one of the nodes \(study, attic\), found 'den'"):
        launcher.box("den")


@pytest.mark.parametrize(
    "field",
    ["file_mounts", "initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"],
)
def test_a_clusters_name_is_the_same_in_all_paths(tmp_path: Path, field: str) -> None:
    path = tmp_path / "cluster.yaml"
    nodes = {"study": "192.168.1.10", "attic": "192.168.1.11"}
    path.write_text(launcher_text(Draft("home", "study", nodes, "potluck", "~/.ssh/id")))
    assert load_launcher(path).name == "home"
    document = yaml.safe_load(path.read_text())
    renamed = yaml.safe_load(path.read_text().replace(".potluck/home", ".potluck/away"))
    document[field] = renamed[field]
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(
        ClusterFileError, match=rf"{field}: expected \.potluck/home, .*found '\.potluck/away'"
    ):
        load_launcher(path)


def test_what_else_lies_beside_a_clusters_folder_is_nobodys_name(tmp_path: Path) -> None:
    document = launcher_document()
    document["head_start_ray_commands"][0] = "source ~/.potluck/venv/bin/activate && ray stop --force"
    assert load_launcher(write_launcher(tmp_path, document)).name == "home"


@pytest.mark.parametrize("field", ["head_start_ray_commands", "worker_start_ray_commands"])
@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("192.168.1.11=attic", "192.168.1.11=loft", "found '192.168.1.11=loft'"),
        ("192.168.1.11=attic", "192.168.1.12=attic", "found nothing of it"),
    ],
)
def test_the_commands_that_start_ray_know_each_box_by_its_name(
    tmp_path: Path, field: str, before: str, after: str, found: str
) -> None:
    path = tmp_path / "cluster.yaml"
    nodes = {"study": "192.168.1.10", "attic": "192.168.1.11"}
    path.write_text(launcher_text(Draft("home", "study", nodes, "potluck", "~/.ssh/id")))
    document = yaml.safe_load(path.read_text())
    document[field] = [command.replace(before, after) for command in document[field]]
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ClusterFileError, match=rf"{field}: expected 192.168.1.11=attic .*{found}: .*init`"):
        load_launcher(path)


def test_commands_that_name_no_box_are_held_against_nothing(tmp_path: Path) -> None:
    document = launcher_document()
    document["head_start_ray_commands"][1] += ' --resources="{\\"$(hostname)\\":1}"'
    assert load_launcher(write_launcher(tmp_path, document)).head.name == "study"
