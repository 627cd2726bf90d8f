"""Training: samples, augmentation, losses, schedule, the loop and its resumable state."""
