"""Interface: what-if runs described in a file: a fabric, a job on it, what its work costs, what goes wrong."""
