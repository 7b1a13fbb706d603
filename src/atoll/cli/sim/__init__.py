"""Driver: `atoll sim`."""
