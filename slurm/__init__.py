"""What a SLURM job says about itself; imports nothing of hpcenc."""
