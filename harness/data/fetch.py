"""Fetch repositories into a folder that `data_root=` and `model.pretrained=` take as it is."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import make_folder
from harness.data import cards, unpack
from harness.data.hub import AGAIN, Listing, endpoint, list_files, refusals
from harness.data.sources import Source
from harness.models import checkpoint

TIMEOUT = 20.0  # seconds for the Hub to list a repository; HF_HUB_DOWNLOAD_TIMEOUT is for the files
ROOM = 1 << 28  # bytes that stay free


@dataclass(frozen=True)
class Order:
    """A repository to fetch: all sources in it, its files at one commit, and where they go."""

    sources: Sequence[Source]
    listing: Listing
    files: Sequence[str]
    folder: Path

    @classmethod
    def of(cls, sources: Sequence[Source], to: Path, timeout: float = TIMEOUT) -> "Order":
        """Ask the Hub what a repository holds; UserError if it refuses."""
        listing = list_files(sources[0], timeout)
        names = sorted(listing.sizes)
        files = cards.chosen_files(listing.card, sources, listing.sizes) if sources[0].kind == "dataset" else names
        return cls(sources, listing, files, to / sources[0].folder)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.listing.sizes[name] for name in self.files)

    @property
    def missing(self) -> list[str]:
        """Files that are not there, or not whole."""
        return [name for name in self.files if _size(self.folder / name) != self.listing.sizes[name]]


def check_room(orders: Sequence[Order], to: Path) -> None:
    """Raise UserError if what is missing of all orders does not fit on the disk."""
    needed = sum(order.listing.sizes[name] for order in orders for name in order.missing)
    place = next(path for path in (to.absolute(), *to.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed + ROOM > free:
        raise UserError(f"to={to} needs {in_words(needed)} more, {in_words(free)} are free: choose another disk")


def fetch(order: Order, dtype: str, say: Callable[[str], Any]) -> None:
    """Fetch what is missing of a repository, and unpack its archives; UserError if it does not end up whole.

    `dtype` is what a model would be loaded in. Quantised weights that this machine cannot load are not fetched.
    """
    source, folder = order.sources[0], order.folder
    make_folder(folder)
    if source.kind == "model" and "config.json" in order.files:
        _download(order, ["config.json"])
        checkpoint.check_weights(folder, dtype)
    say(f"{source.repository}: {len(order.missing)} of {len(order.files)} files, {in_words(order.size)} in all")
    _download(order, order.files)
    if lost := order.missing:
        size = _size(folder / lost[0])
        state = "is not there" if size is None else f"has {size} bytes of {order.listing.sizes[lost[0]]}"
        raise UserError(f"{folder / lost[0]} {state} after the download: the disk may be full; {AGAIN}")
    if any(source.archives for source in order.sources):
        unpack.unpack(folder, order.files, say)


def _download(order: Order, names: Sequence[str]) -> None:
    """Download files at the commit that was listed; of those that are there, huggingface_hub checks the commit."""
    from huggingface_hub import snapshot_download

    source = order.sources[0]
    for name in names:
        if (size := _size(order.folder / name)) is not None and size != order.listing.sizes[name]:
            (order.folder / name).unlink()
    with refusals(source):
        snapshot_download(
            source.repository,
            repo_type=source.kind,
            revision=order.listing.commit,
            local_dir=order.folder,
            endpoint=endpoint(),
            allow_patterns=[_literal(name) for name in names],
        )


def _literal(name: str) -> str:
    """Return a pattern that matches one name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def in_words(size: int) -> str:
    """Return a number of bytes as the Hub prints it, in powers of 1000."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
