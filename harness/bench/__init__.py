"""Benchmarks of what pruning saves: latency by stage, memory, FLOPs, and the speed of the selection kernels."""
