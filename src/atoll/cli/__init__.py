"""Interface: the command line: parse, assemble, print."""
