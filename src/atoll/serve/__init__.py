"""Interface: the serving engine: sequences, a scheduler over pages of keys and values, and processes that run them."""
