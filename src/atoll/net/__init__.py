"""Interface: bytes between computers."""
