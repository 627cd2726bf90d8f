"""A trained model on whole scans: sliding window, back onto the scan's own grid, one file per case."""
