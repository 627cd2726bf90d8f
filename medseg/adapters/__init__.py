"""Drop-ins in MONAI's terms: an image reader and an inferer."""
