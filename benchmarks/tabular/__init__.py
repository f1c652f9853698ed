"""Parts of the benchmark on tables."""
