"""Chat templates of families whose format is the same for all models, for files that have none."""
