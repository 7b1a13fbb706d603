"""Interface: the seam between programs and the world they run in: time, randomness, cost, processes."""
