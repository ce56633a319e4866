"""Sweeps, the Pareto front, the gate and speed profiles: what decides how the farm renders. Knows no Ray."""
