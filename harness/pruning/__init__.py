"""One prune block: it asks the method, cuts the prefill, keeps decoding right on the pruned KV cache, and checks it."""
