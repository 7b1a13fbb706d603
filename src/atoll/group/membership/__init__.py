"""Interface: who is in, what all have agreed on, and in which order the ring stands: the master and its parts."""
