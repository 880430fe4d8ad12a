"""Parts of training: starting values, optimiser, fine-tuning, batches in parts."""
