"""The stages of a run as jobs of a Slurm cluster; see docs/slurm.md."""
