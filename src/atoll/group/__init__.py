"""Interface: many computers acting as one."""
