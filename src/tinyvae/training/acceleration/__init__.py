"""Fast paths: compilation, matrix products, fused updates, the allocator."""
