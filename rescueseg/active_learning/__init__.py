"""Which patches to ask for next: acquisition functions, candidates, strategies, when to stop."""
