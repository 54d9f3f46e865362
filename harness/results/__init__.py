"""Finished and running runs on disk, and the tables made of them. Nothing here imports torch or lmms-eval."""
