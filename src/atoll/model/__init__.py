"""Interface: readable models, their tokenisers, and how they are saved for other tools to load."""
