"""Running a configuration through lmms-eval: checks, tasks, the model that it asks, identity, sweeps."""
