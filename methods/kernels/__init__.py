"""Plain torch loops that several methods share: greedy picks, similarities, sums of attention."""
