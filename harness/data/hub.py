"""Ask the Hub what a repository holds, and turn each of its refusals into one line that says what to do."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UserError, one_line
from harness.data.sources import Source
from harness.models.checkpoint import run_with_timeout

FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "the same command goes on from what is there"


class NotReachedError(UserError):
    """The Hub does not answer at all."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    sizes: Mapping[str, int]  # file -> bytes
    card: Mapping[str, Any]  # the YAML at the head of its card


def endpoint() -> str:
    """Return the address of the Hub, or of the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def list_files(source: Source, timeout: float) -> Listing:
    """Return the files of a repository with their sizes, and the header of its card; UserError if the Hub refuses."""
    from huggingface_hub import HfApi

    found: list[Any] = []

    def ask() -> None:
        api = HfApi(endpoint=endpoint())
        found.append(
            api.repo_info(
                source.repository,
                repo_type=source.kind,
                revision=source.revision,
                files_metadata=True,
                timeout=timeout,
            )
        )

    with refusals(source):
        if (error := run_with_timeout(timeout + 1, ask)) is not None:
            raise error
    info = found[0]
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    if not info.sha or not sizes or any(size is None for size in sizes.values()):
        raise UserError(f"{endpoint()} does not list the files of {source.repository} with their sizes: try again")
    data = info.card_data.to_dict() if info.card_data is not None else {}
    return Listing(info.sha, sizes, data)


@contextmanager
def refusals(source: Source) -> Iterator[None]:
    """Raise what huggingface_hub raises as a UserError of one line: a gate, no repository, no network, a full disk."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # its client's errors have no base class in common, and differ between its versions
        raise _said(error, source) from error


def _said(error: Exception, source: Source) -> UserError:
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why it looked for a local copy
    what, at = f"{source.kind} {source.repository}", endpoint()
    page = f"{at}/{'datasets/' if source.kind == 'dataset' else ''}{source.repository}"
    login = "log in (hf auth login, or HF_TOKEN)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{what} is gated: accept its terms at {page} and {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{what} has no revision {source.revision}: choose a branch or commit of {page}")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return UserError(f"{what} lacks a file that it lists ({one_line(error)[:160]}): try again")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        hidden = f"or hides it from you (HTTP status {status})"
        return UserError(f"{at} has no {what}, {hidden}: check the name, and {login}")
    if status is not None:
        return UserError(f"{at} answers with HTTP status {status} for {what}: try again later; {AGAIN}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        remedy = "unset it, on a machine with network access"
        return NotReachedError(f"cannot ask {at} for {what}, since HF_HUB_OFFLINE is set: {remedy}")
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
        place = error.filename or what
        return UserError(f"cannot write {place} ({error.strerror}): make room or choose another folder; {AGAIN}")
    cause = f"{type(error).__name__}: {one_line(error)[:160]}"
    return NotReachedError(f"cannot fetch {what} from {at} ({cause}): run this where there is network; {AGAIN}")
