"""Measurements, side by side with the tools people use. `python -m benchmarks NAME` runs one."""
