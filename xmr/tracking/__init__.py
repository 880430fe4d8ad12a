"""What a run writes: metrics, TensorBoard, progress, alarm, profile."""
