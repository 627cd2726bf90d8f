"""Medical-image segmentation from one manifest and one config."""
