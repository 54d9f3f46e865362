"""What pruning saves: latency stage by stage, memory, operations, and the speed of the selection kernels."""
