"""Analyses of what pruning methods keep, and of the runs of many methods."""
