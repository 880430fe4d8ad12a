"""Parts of a training: starting values, optimiser, fine-tuning, batches in parts."""
