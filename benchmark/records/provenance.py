"""Origin of a record: hashes of the code, versions of the libraries, the machine. Spec: measurement 9.

Heavy packages are not imported to ask for their versions, and nothing here names a path or a host.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmark.records.documents import EnvironmentDocument
from benchmark.version import __version__
from datasets.errors import UsageError

PACKAGES = ("benchmark", "datasets", "methods")
# Variables that change bits or speed on one machine; PATH-like variables stay out of records.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_CUDA_ALLOC_CONF",
)
_GIT_TIMEOUT_S = 10.0  # a hanging network file system must not hang a benchmark


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """sha256 (hex) over the files' names below `root` and their contents, independent of order and line endings."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix().encode()
        content = path.read_bytes().replace(b"\r\n", b"\n")  # a checkout on Windows holds the same code
        digest.update(b"%d:%s%d:%s" % (len(name), name, len(content), content))
    return digest.hexdigest()


def _sources(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]


def module_file(name: str) -> Path:
    """The source file of a module, imported or not. Raises UsageError if it has none."""
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)  # plug-ins and __main__ are known here and nowhere else
    if origin is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        origin = spec.origin if spec is not None and spec.has_location else None
    if origin is None:
        raise UsageError(f"Module {name!r} has no source file to hash; expected code that lies in a .py file.")
    return Path(origin)


def package_hash() -> str:
    """sha256 (hex) over the .py and .yaml files of the three packages: the code that made a record."""
    folders = {name: module_file(name).parent for name in PACKAGES}
    parts = [f"{name}:{hash_files(folder, _sources(folder, ('.py', '.yaml')))}" for name, folder in folders.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def installed(distribution: str) -> str | None:
    """The version of a distribution, None if it is not installed. Nothing is imported."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def versions(
    *,
    training_hash: str,
    method_hash: str,
    data_hash: str | None,
    weights_hash: str | None,
    cuda: str | None = None,
    cudnn: str | None = None,
) -> dict[str, str | None]:
    """The `versions` block of a record. cuda, cudnn: versions in use, None on a CPU; asked of torch by the caller."""
    return {
        "suite": __version__,
        "package_hash": package_hash(),
        "training_hash": training_hash,
        "method_hash": method_hash,
        "data_hash": data_hash,
        "weights_hash": weights_hash,
        "python": platform.python_version(),
        "torch": installed("torch"),
        "torchvision": installed("torchvision"),
        "timm": installed("timm"),
        "numpy": installed("numpy"),
        "cuda": cuda,
        "cudnn": cudnn,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    # GIT_DIR and the like are set inside hooks and would point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # `git status` must not write to the checkout
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def git_state(folder: Path | None = None) -> dict[str, str | bool | None]:
    """{"commit": hex, "dirty": bool} of the checkout that holds the packages; both None if they are not tracked.

    A copy that is installed inside another repository is not tracked there and must not report that repository's
    commit.
    """
    folder = Path(__file__).parent.parent if folder is None else folder
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    tracked = _git(folder, "ls-files", "--error-unmatch", "--", "__init__.py")
    status = _git(folder, "status", "--porcelain")
    if commit is None or tracked is None or status is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def cpu_name() -> str:
    """Name of the processor as the system reports it; on Linux with family, model and stepping, which the name of a
    virtual machine's processor leaves out.
    """
    cpuinfo = Path("/proc/cpuinfo")
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    except OSError:
        lines = []
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())  # the first core speaks for all
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = [found[name] for name in ("cpu family", "model", "stepping") if name in found]
    return f"{found['model name']} ({'/'.join(numbers)})" if numbers else found["model name"]


def environment(
    device: str,
    threads: Mapping[str, int],
    determinism: Mapping[str, bool | str],
    driver: str | None = None,
    cpu_capability: str | None = None,
) -> EnvironmentDocument:
    """The `environment` block of a record. device: "cpu" or a GPU's name; threads: intra- and inter-op.

    cpu_capability: the instruction set that torch's CPU kernels use, asked of torch by the caller.
    """
    return {
        "device": device,
        "driver": driver,
        "cpu": cpu_name(),
        "cpu_capability": cpu_capability,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": dict(threads),
        "env": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "determinism": dict(determinism),
        "git": git_state(),
    }
