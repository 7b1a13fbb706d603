"""Interface: training: strategies over a group, the loop, text, checkpoints."""
