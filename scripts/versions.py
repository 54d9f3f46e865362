"""Run the decoding test and the embedded questions on versions of transformers: python scripts/versions.py [5.4.0 ...]

Without arguments: the newest release of every minor version that pyproject.toml allows. Each is installed in
a temporary folder that precedes the environment, with dependencies whose installed version does not fit. Prints a line
of docs/versions.md for each. Run it in the environment of `make test`.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
TESTS = ["tests/pruning/test_decoding.py"]
LAID_OVER = ("tokenizers", "huggingface-hub")  # named in the table


def allowed() -> list[str]:
    """Return the newest release of every minor version within the bounds of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        bounds = map(Requirement, tomllib.load(file)["project"]["dependencies"])
    (specifier,) = (bound.specifier for bound in bounds if bound.name == "transformers")
    call = [*PIP, "index", "versions", "transformers"]
    output = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    listed = re.search(r"Available versions: (.*)", output)
    if listed is None:
        raise SystemExit(f"pip index versions: expected a line 'Available versions', got {output!r}")
    newest: dict[tuple[int, int], Version] = {}
    for release in sorted(map(Version, listed[1].split(", "))):
        if release in specifier:
            newest[release.major, release.minor] = release
    return [str(release) for release in newest.values()]


def lay_over(folder: Path, release: str) -> None:
    """Install a release of transformers into `folder`, with dependencies whose installed version does not fit."""
    subprocess.run(
        [*PIP, "install", "--quiet", "--no-deps", "--target", folder, f"transformers=={release}"], check=True
    )
    (metadata,) = folder.glob("transformers-*.dist-info")
    needs = [Requirement(line) for line in _requirements(metadata)]
    required = [need for need in needs if not (need.marker and "extra" in str(need.marker))]
    others = [str(need) for need in required if not _fits(need)]
    if others:
        subprocess.run([*PIP, "install", "--quiet", "--no-deps", "--target", folder, *others], check=True)


def _requirements(metadata: Path) -> list[str]:
    """Return the requirements that a dist-info folder lists."""
    lines = (metadata / "METADATA").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]


def _fits(need: Requirement) -> bool:
    try:
        return version(need.name) in need.specifier
    except PackageNotFoundError:
        return False


def last_line(command: list[str], env: dict[str, str]) -> tuple[bool, str]:
    """Run a command in the checkout; return whether it succeeded, and the last line that it printed."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    printed = [line for line in done.stdout.splitlines() if line.strip()] or done.stderr.splitlines() or ["nothing"]
    return done.returncode == 0, printed[-1].strip("= ")


def row(release: str) -> str:
    """Return the line of the table for a release."""
    with tempfile.TemporaryDirectory() as name:
        lay_over(Path(name), release)
        env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{name}", "OMP_NUM_THREADS": "1"}
        probe = f"from importlib.metadata import version as v; print(*map(v, {('torch', 'transformers', *LAID_OVER)}))"
        _, installed = last_line(["-c", probe], env)
        _, tests = last_line(["-m", "pytest", "-n", "2", "-o", "addopts=--strict-markers", "--no-header", *TESTS], env)
        _, answers = last_line(["-m", "harness.doctor", "only=reproduces"], env)
    return f"| {' | '.join(installed.split())} | {tests} | {answers} |"


def main() -> None:
    """Print a row for every release when it is finished."""
    for release in sys.argv[1:] or allowed():
        print(row(release), flush=True)


if __name__ == "__main__":
    main()
