"""Greedy loops that are hot, as plain functions on tensors."""
