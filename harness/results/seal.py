"""What `DONE` says of a finished run's files: their SHA-256, so that nobody takes changed numbers for results.

`DONE` also has a digest of its own content, and the metrics that tables show, which may change after the end.
"""

from pathlib import Path
from typing import Any

from harness.core.errors import UserError, as_user_error
from harness.core.files import digest, file_digest, has_crlf, load, to_json, write_atomic
from harness.results.response_log import KEPT, RESPONSES

SCORES = "scores.json"
METRICS = "metrics.json"
DONE = "DONE"
FILES = ("run.json", RESPONSES, KEPT, SCORES, METRICS)
REMADE = {SCORES, METRICS, DONE}  # from the answers, without asking the model
DIGESTS = "sha256"  # key in `DONE`
FIRST_SEALED = 3  # oldest format of run.json whose runs have digests
UNSEALED = "no digests: finished before DONE recorded them, so a changed file may go unnoticed"


def write(folder: Path, about: dict[str, Any]) -> None:
    """Write `DONE`: `about` and the digests of the other files, which are complete."""
    _write(folder, {**about, DIGESTS: {name: file_digest(folder / name) for name in _present(folder)}})


def amend(folder: Path, more: dict[str, Any]) -> None:
    """Add keys to `DONE`; one atomic write, so that no kill leaves a file that contradicts another."""
    _write(folder, {**read(folder), **more})


def read(folder: Path) -> dict[str, Any]:
    """Read `DONE`, which early runs left empty."""
    file = folder / DONE
    with as_user_error(OSError, f"{file} cannot be read"):
        is_empty = not file.stat().st_size
    return {} if is_empty else load(file, (), f"remove {file} and start again, its answers are kept")


def check(folder: Path) -> bool:
    """Raise UserError unless the files of a finished run are those that it wrote; False if it recorded no digests."""
    about = read(folder)
    if DIGESTS not in about:
        run = load(folder / "run.json", ("identity",), f"move {folder} away and start again")
        if run.get("format", 1) >= FIRST_SEALED:
            raise _damaged(folder, {DONE: "lacks the digests of the other files"})
        return False
    digests = about[DIGESTS]
    if not isinstance(digests, dict) or digests.get(DONE) != _of_content(about):
        raise _damaged(folder, {DONE: "was changed after the end"})
    faults = {name: _fault(folder / name, digests.get(name)) for name in FILES}
    if faults := {name: fault for name, fault in faults.items() if fault}:
        raise _damaged(folder, faults)
    return True


def is_sealed(folder: Path) -> bool:
    """Return whether `DONE` has digests of the run's files; `check` demands them of newer runs."""
    return DIGESTS in read(folder)


def _write(folder: Path, about: dict[str, Any]) -> None:
    if DIGESTS in about:
        about = {**about, DIGESTS: {**about[DIGESTS], DONE: _of_content(about)}}
    write_atomic(folder / DONE, to_json(about))


def _of_content(about: dict[str, Any]) -> str:
    others = {name: value for name, value in about[DIGESTS].items() if name != DONE}
    return digest({**about, DIGESTS: others})


def _present(folder: Path) -> list[str]:
    return [name for name in FILES if (folder / name).is_file()]


def _fault(file: Path, expected: str | None) -> str | None:
    """Return what is wrong with a file, of which `DONE` has the digest `expected`; None if nothing is."""
    if not file.is_file():
        return "is missing" if expected else None
    with as_user_error(OSError, f"{file} cannot be read"):
        if file_digest(file) == expected:
            return None
        if expected is None:
            return "was added after the end"
        return "has got CRLF line ends" if has_crlf(file.read_bytes(), expected) else "was changed after the end"


def _damaged(folder: Path, faults: dict[str, str]) -> UserError:
    remedy = f"remove {folder / DONE} and start again, its answers are kept"
    if not faults.keys() <= REMADE:
        remedy = f"move {folder} away and start again"
    words = ", ".join(f"{name} {fault}" for name, fault in faults.items())
    return UserError(f"{folder} is damaged ({words}): restore a copy, or {remedy}")
