"""Interface: requests made up: when they come, how long they are, how they hang together."""
