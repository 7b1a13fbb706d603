"""Interface: what moves in a collective: schedules, the buffers they are walked over, and which one is chosen."""
