"""Driver: `atoll sim`: what would happen."""
