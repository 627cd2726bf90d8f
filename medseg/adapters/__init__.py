"""Drop-ins in MONAI's terms: an image reader, random transforms, an inferer; and MONAI's own random transforms, checked."""
