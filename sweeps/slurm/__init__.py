"""Sweeps through a SLURM queue."""
