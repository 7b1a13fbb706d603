"""Interface: several endpoints that answer as one: which of them is asked, and which is gone round."""
