"""Hydra configuration groups: method, model, tasks."""
