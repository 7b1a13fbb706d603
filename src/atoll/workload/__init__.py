"""Interface: who arrives when: traces, fits, generators, SLO accounting."""
