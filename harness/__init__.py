"""Pruning of visual tokens in multimodal LLMs, and its evaluation. Importing the package does not import torch."""

import sys

if sys.argv[:1] == ["-m"]:
    if not sys.flags.safe_path:
        # `python -m harness` searches the working directory first; a folder methods/ or conf/ there must not hide ours.
        sys.path.append(sys.path.pop(0))
    from harness.core.hook import answer_help, install

    install()  # before any other import, which may fail or be interrupted
    answer_help()

from harness.prune import prune
from harness.pruning.handle import Kept, Pruning

__version__ = "0.2.0"
__all__ = ["Kept", "Pruning", "prune"]
