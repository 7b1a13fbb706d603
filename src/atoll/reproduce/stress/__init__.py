"""Driver: all that can go wrong with a group, at random and at once, from one seed; see `docs/reliability.md`."""
