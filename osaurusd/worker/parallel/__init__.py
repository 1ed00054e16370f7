"""Where the steps of a model run: `local` runs them in this process."""
