"""Interface: how well does virtual time know this machine? Measured, fitted, predicted, held against what was left out.

`measure` times small things and whole all-reduces; `fit` makes cost models of them and sets points aside; `predict`
runs the virtual group on those costs. `atoll sim calibrate` prints the errors.
"""
