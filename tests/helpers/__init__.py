"""What several tests need: starting real MPI jobs, and nothing else."""
