"""Sources of batches: tensors, Datasets and DataLoaders."""
