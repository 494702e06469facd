"""The image of docker/Dockerfile: built, run as anybody, compared with the host, stopped, and searched for secrets.

Needs Debian's docker.io; its daemon is started here when none answers, which needs root. Takes some fifteen
minutes, and 14 GB for that time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ("/usr/bin/docker", shutil.which("docker"))
"""Debian's own first: another program of that name may stand before it in the PATH."""
SPACE = 20e9
"""The build was measured to take 14 GB: the CUDA libraries are in it twice."""
MARKER = "aerialseg-test-secret-5f1c7a"
ANYBODY = ("--network", "none", "--user", "1234:1234", "--read-only", "--tmpfs", "/tmp", "-e", "OMP_NUM_THREADS=1")
PLAIN = ("--device", "cpu", "--precision", "fp32")


@dataclass(frozen=True)
class Docker:
    """A client and the daemon it talks to."""

    client: str
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: Any, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        command, environment = [self.client, *map(str, words)], {**os.environ, **self.environment}
        settings = {"capture_output": True, "text": True, "check": False, **options}
        return subprocess.run(command, env=environment, timeout=timeout, **settings)


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon: the machine's own, or one of ours with everything it has in a folder that is removed."""
    client = next((str(path) for path in CLIENTS if path and Path(path).is_file()), None)
    if client is None:
        pytest.skip("docker is missing: apt-get install docker.io")
    free = shutil.disk_usage("/var/tmp").free
    if free < SPACE:
        pytest.skip(f"/var/tmp has {free / 1e9:.0f} GB free, the image needs {SPACE / 1e9:.0f} GB to build")
    if Docker(client)("info").returncode == 0:
        yield Docker(client)
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no docker daemon answers, and starting one needs root and dockerd (Debian: docker.io)")
    with started_daemon() as address:
        found = Docker(client, {"DOCKER_HOST": address})
        if not wait_for(lambda: found("info").returncode == 0, 60):
            pytest.skip("dockerd does not start here")
        yield found


@contextmanager
def started_daemon() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="aerialseg-docker-", dir="/var/tmp"))
    address = f"unix://{folder}/socket"
    command = ["dockerd", "--iptables=false", "--bridge=none", "--host", address, "--pidfile", folder / "pid"]
    command += ["--data-root", folder / "data", "--exec-root", folder / "exec"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as daemon:
        try:
            yield address
        finally:
            daemon.terminate()
            daemon.wait(60)
            for line in Path("/proc/mounts").read_text().splitlines()[::-1]:
                if line.split()[1].startswith(f"{folder}/"):
                    subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def base(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's slim image, from the registry or made by debootstrap."""
    name = "debian:bookworm-slim"
    if docker("image", "inspect", name).returncode == 0:
        return name
    try:
        if docker("pull", "--quiet", name, timeout=60).returncode == 0:
            return name
    except subprocess.TimeoutExpired:
        pass
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("no registry answers, and making a base image needs root and debootstrap")
    root = tmp_path_factory.mktemp("base") / "root"
    made = subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no registry answers, and debootstrap fails: {made.stdout[-300:]}")
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        docker("import", "-", "aerialseg-test-base", stdin=tar.stdout, check=True)
    shutil.rmtree(root)
    return "aerialseg-test-base"


@pytest.fixture(scope="module")
def image(docker: Docker, base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The built image; what pip and TLS need here goes in as secrets, each with a marker in it."""
    name, secrets, words = "aerialseg-test", tmp_path_factory.mktemp("secrets"), []
    for secret, path in (("pip", Path("/etc/pip.conf")), ("ca", Path("/etc/ssl/certs/ca-certificates.crt"))):
        if path.is_file():
            (secrets / secret).write_text(f"# {MARKER}\n{path.read_text()}")
            words += ["--secret", f"id={secret},src={secrets / secret}"]
    built = Docker(docker.client, {**docker.environment, "DOCKER_BUILDKIT": "1"})(
        *("build", "--network", "host", "--progress", "plain", "-f", ROOT / "docker" / "Dockerfile", "-t", name),
        *("--build-arg", f"BASE={base}", *words, ROOT),
        timeout=1800,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    yield name
    docker("image", "rm", "--force", name, "aerialseg-test-base")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, scene_file: Any, mask_file: Any, tiny_model: Any) -> Path:
    """A folder that anybody may write: two scenes with masks, one large scene, and a model."""
    folder = tmp_path_factory.mktemp("work")
    for number in (1, 2):
        scene_file(folder / "scenes" / f"austin{number}.tif", size=(300, 400), seed=number)
        mask_file(folder / "masks" / f"austin{number}.tif", size=(300, 400))
    scene_file(folder / "large" / "large.tif", np.full((3, 6000, 6000), 90, np.uint8))
    tiny_model(folder / "model.safetensors", tile_size=256)
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def inside(docker: Docker, image: str, work: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of the image as a stranger, without network, on a root file system that is read-only."""
    return lambda *words: docker("run", "--rm", *ANYBODY, "-v", f"{work}:/data", image, *words, timeout=600)


def wait_for(ready: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_it_says_what_it_is_and_runs_as_nobody_in_particular(docker: Docker, image: str, inside: Any) -> None:
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert config["User"] == "1000:1000", "Kubernetes tells only from a number that it is not root"
    assert config["Labels"]["org.opencontainers.image.title"] == "aerialseg"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    done = inside("--version")
    assert done.returncode == 0 and done.stdout.startswith("aerialseg "), done.stderr


def test_doctor_finds_all_it_needs(inside: Any) -> None:
    done = inside("doctor", "--json")
    findings = json.loads(done.stdout)
    missing = [item for item in findings["findings"] if item["state"] == "missing"]
    assert (done.returncode, missing) == (0, []), done.stderr


def test_masks_and_tiles_are_the_hosts_byte_for_byte(
    inside: Any, work: Path, cli: Callable[..., Any], tree_hashes: Any
) -> None:
    for place, execute in (("host", lambda *words: cli(*words, cwd=work)), ("container", inside)):
        for words in (
            ("predict", "scenes", "-m", "model.safetensors", "-o", f"{place}/out", "--probability", *PLAIN),
            ("tile", "scenes", "--masks", "masks", "-o", f"{place}/tiles", "--size", "128", "--split", "0"),
        ):
            done = execute(*words)
            assert done.returncode == 0, done.stderr
    for folder, many in (("out", 4), ("tiles", 48)):
        made = {
            place: {
                name: digest for name, digest in tree_hashes(work / place / folder).items() if name.endswith(".tif")
            }
            for place in ("host", "container")
        }
        assert made["container"] == made["host"] and len(made["host"]) == many
    assert (work / "container" / "out" / "austin1.tif").stat().st_uid == 1234


def test_sigterm_stops_predict_in_time(docker: Docker, image: str, work: Path) -> None:
    command = ("predict", "large", "-m", "model.safetensors", "-o", "stopped", *PLAIN)
    name = "aerialseg-test-stop"
    started = docker("run", "--detach", "--name", name, *ANYBODY, "-v", f"{work}:/data", image, *command)
    try:
        assert started.returncode == 0, started.stderr
        assert wait_for(lambda: any((work / "stopped").glob(".aerialseg-*")), 120), docker("logs", name).stderr
        time.sleep(5)
        began = time.monotonic()
        assert docker("kill", "--signal", "TERM", name).returncode == 0
        code = docker("wait", name).stdout.strip()
        seconds, said = time.monotonic() - began, docker("logs", name).stderr
        assert (code, seconds < 10) == ("143", True), said
        assert "error: stopped by SIGTERM" in said
    finally:
        docker("rm", "--force", name)


def test_no_layer_holds_a_secret(docker: Docker, image: str) -> None:
    assert MARKER not in docker("history", "--no-trunc", image).stdout
    driver = json.loads(docker("image", "inspect", image).stdout)[0]["GraphDriver"]
    if driver["Name"] != "overlay2" or os.geteuid() != 0:
        pytest.skip(f"layers of the storage driver {driver['Name']} cannot be looked into")
    layers = [*driver["Data"].get("LowerDir", "").split(":"), driver["Data"]["UpperDir"]]
    found = subprocess.run(["grep", "-rlF", MARKER, *filter(None, layers)], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), found.stdout[:500]
    names = [path for layer in filter(None, layers) for path in Path(layer).rglob("pip.conf")]
    assert [path for path in names if path.stat().st_size] == []
