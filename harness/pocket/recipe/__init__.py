"""The recipe of the embedded weights: for a checkout, no part of the wheel. Only `harness.pocket.train` imports it."""
