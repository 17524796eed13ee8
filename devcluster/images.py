"""Container images: built from the repository with buildah, imported into the cluster's containerd."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from devcluster import build
from devcluster.build import fresh_partial, locked
from devcluster.paths import ROOT, cache_dir, content_key
from devcluster.shell import find_tool, run, say

PAUSE_IMAGE = "localhost/trimtab/pause:dev"
COREDNS_IMAGE = "localhost/trimtab/coredns:dev"
ADDONS_IMAGE = "localhost/trimtab/addons:dev"
# Image → (target of images/Dockerfile, lock file of what it installs).
PROJECT_IMAGES = {
    "docker.io/trimtab/operator:dev": ("operator", "operator.txt"),
    "docker.io/trimtab/sidecar:dev": ("sidecar", "sidecar.txt"),
    "docker.io/trimtab/tgi-sim:dev": ("tgi-sim", "simulator.txt"),
    "docker.io/trimtab/vllm-sim:dev": ("vllm-sim", "simulator.txt"),
}
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
ADDON_PACKAGES = "prometheus,redis-server,python3-minimal,libpython3-stdlib"
_TRIM = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def pause_archive() -> Path:
    """The image that holds a pod's namespaces open."""
    program = build.pause()
    return _scratch_archive(PAUSE_IMAGE, program, "pause")


def coredns_archive() -> Path:
    """CoreDNS."""
    return _scratch_archive(COREDNS_IMAGE, build.coredns(), "coredns")


def addons_archive() -> Path:
    """Prometheus and Redis as Debian packages them."""
    key = content_key(ADDONS_IMAGE, ADDON_PACKAGES, *_TRIM)
    return _archive(ADDONS_IMAGE, key, lambda: _from_rootfs(_rootfs(ADDON_PACKAGES), ADDONS_IMAGE))


def project_archives() -> dict[str, Path]:
    """Operator, sidecar and simulator with the source as it stands now."""
    return {image: _project_archive(image, target, lock) for image, (target, lock) in PROJECT_IMAGES.items()}


def _project_archive(image: str, target: str, lock: str) -> Path:
    # The key is taken from a copy: the source may change while images are built.
    with tempfile.TemporaryDirectory(dir=_made(cache_dir() / "context")) as folder:
        context = Path(folder)
        copy_source(target, context / "project" / "trimtab")
        shutil.copy(ROOT / "requirements" / lock, context / "requirements.txt")
        shutil.copy(ROOT / "images" / "Dockerfile", context)
        key = content_key(image, BASE_PACKAGES, context)
        return _archive(image, key, lambda: _assemble(context, image, target, lock))


def copy_source(target: str, destination: Path) -> None:
    """The package as one image holds it: the sidecar imports nothing of it but itself, so nothing else is there."""
    source = ROOT / "operator" / "trimtab"
    ignore = shutil.ignore_patterns("__pycache__")
    if target != "sidecar":
        shutil.copytree(source, destination, ignore=ignore)
        return
    shutil.copytree(source / "sidecar", destination / "sidecar", ignore=ignore)
    for file in ("__init__.py", "py.typed"):
        if (source / file).exists():
            shutil.copy(source / file, destination)


def _assemble(context: Path, image: str, target: str, lock: str) -> None:
    (context / "wheels").mkdir()
    for wheel in _wheels(lock).iterdir():
        os.link(wheel, context / "wheels" / wheel.name)
    base = ["--build-arg", f"BASE={_base_image()}"]
    _buildah("build", "--layers", "--pull-never", *base, "--target", target, "-t", image, context)
    # Images that this one replaces; layers that others build upon stay.
    _buildah("rmi", "--prune")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _wheels(lock: str) -> Path:
    """Third-party wheels for the images' Python 3.11, exactly as locked."""
    path = ROOT / "requirements" / lock
    target = cache_dir() / "wheels" / content_key(path)
    with locked(f"wheels-{lock}"):
        if not target.exists():
            say(f"downloading the wheels of requirements/{lock}")
            partial = fresh_partial(target)
            options = ["--require-hashes", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
            tags = [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
            tags += [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)]
            tags += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64", "--platform=any"]
            run([_pip_python(), "-m", "pip", "download", "-q", *options, *tags, "-r", path, "-d", partial])
            partial.replace(target)
    return target


def _pip_python() -> Path | str:
    virtual = ROOT / ".venv" / "bin" / "python"
    return virtual if virtual.exists() else sys.executable


def _base_image() -> str:
    tag = f"localhost/trimtab/base:{content_key(BASE_PACKAGES, *_TRIM)}"
    with locked("base"):
        if tag.rsplit(":", 1)[1] not in _buildah("images", "--format", "{{.Tag}}"):
            _from_rootfs(_rootfs(BASE_PACKAGES), tag)
    return tag


def _rootfs(packages: str) -> Path:
    """A minimal Debian with these packages as a tar file."""
    target = cache_dir() / "rootfs" / f"{content_key(packages, *_TRIM)}.tar"
    with locked("rootfs"):
        if not target.exists():
            say(f"building a Debian base with {packages} (once)")
            partial = fresh_partial(target).with_suffix(f".{os.getpid()}.tar")
            trim = [f"--dpkgopt=path-exclude={pattern}" for pattern in _TRIM]
            run([find_tool("mmdebstrap"), "--variant=minbase", f"--include={packages}", *trim, "bookworm", partial])
            partial.replace(target)
    return target


def _from_rootfs(rootfs: Path, image: str) -> None:
    context = rootfs.parent
    text = f"FROM scratch\nADD {rootfs.name} /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    _buildah("build", "-t", image, "-f", "-", context, input_text=text)


def _scratch_archive(image: str, program: Path, name: str) -> Path:
    def assemble() -> None:
        text = f'FROM scratch\nCOPY {program.name} /{name}\nUSER 65532:65532\nENTRYPOINT ["/{name}"]\n'
        _buildah("build", "-t", image, "-f", "-", program.parent, input_text=text)

    return _archive(image, content_key(image, str(program)), assemble)


def _archive(image: str, key: str, assemble: Callable[[], None]) -> Path:
    """The image as an OCI archive in the cache, built by `assemble` when its inputs changed."""
    target = cache_dir() / "images" / f"{key}.tar"
    with locked("images"):
        if not target.exists():
            say(f"building the image {image}")
            assemble()
            partial = fresh_partial(target)
            _buildah("push", "-q", image, f"oci-archive:{partial}:{image}")
            partial.replace(target)
            _forget_older(image, key)
    return target


def _forget_older(image: str, key: str) -> None:
    """Keep the newest archive of an image only: each is up to some hundred MiB."""
    record = cache_dir() / "images" / f"{content_key(image)}.latest"
    if record.exists() and record.read_text() != key:
        (cache_dir() / "images" / f"{record.read_text()}.tar").unlink(missing_ok=True)
    record.write_text(key)


def _buildah(command: str, *arguments: str | Path, input_text: str | None = None) -> str:
    store = cache_dir() / "buildah"
    places: list[str | Path] = ["--root", store / "root", "--runroot", store / "run", "--storage-driver", "overlay"]
    environment = {"BUILDAH_ISOLATION": "chroot"}
    return run([find_tool("buildah"), *places, command, *arguments], env=environment, input_text=input_text)
