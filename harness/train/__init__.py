"""Learning a VisionSelector scorer (arXiv 2510.16598) on a frozen model: see `harness.train`."""
