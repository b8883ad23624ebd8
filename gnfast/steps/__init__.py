"""A training step as one CUDA graph, several batches through one forward, and memory that steps hand on."""
