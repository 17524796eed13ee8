"""Container images: built from the repository with buildah, imported into the cluster's containerd."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from devcluster import build
from devcluster.build import locked
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
    source = ROOT / "operator" / "trimtab"
    files = [ROOT / "images" / "Dockerfile", ROOT / "requirements" / lock, ROOT / "pyproject.toml"]
    key = content_key(image, BASE_PACKAGES, source, *files)

    def assemble() -> None:
        base = _base_image()
        context = cache_dir() / "context" / target
        shutil.rmtree(context, ignore_errors=True)
        (context / "wheels").mkdir(parents=True)
        for wheel in _wheels(lock).iterdir():
            os.link(wheel, context / "wheels" / wheel.name)
        (context / "project").mkdir()
        shutil.copytree(source, context / "project" / "trimtab", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "requirements" / lock, context / "requirements.txt")
        arguments = ["--layers", "--pull-never", "--build-arg", f"BASE={base}", "--target", target, "-t", image]
        dockerfile: list[str | Path] = ["-f", ROOT / "images" / "Dockerfile"]
        _buildah("build", *arguments, *dockerfile, context)

    return _archive(image, key, assemble)


def _wheels(lock: str) -> Path:
    """Third-party wheels for the images' Python 3.11, exactly as locked."""
    path = ROOT / "requirements" / lock
    target = cache_dir() / "wheels" / content_key(path)
    with locked(f"wheels-{lock}"):
        if not target.exists():
            say(f"downloading the wheels of requirements/{lock}")
            partial = target.with_suffix(f".{os.getpid()}")
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
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.tar")
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
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}")
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
