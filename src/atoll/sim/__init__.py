"""Interface: the same world in virtual time."""
