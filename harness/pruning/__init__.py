"""One prune block: what a method sees of a prefill, the cut, the key-value cache after it, and the proof of it all."""
