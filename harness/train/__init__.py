"""Train a VisionSelector scorer (arXiv 2510.16598) on a frozen model: `python -m harness.train`."""
