"""Interface: what a trace is like, in a few numbers, and whether requests made from these are like it."""
