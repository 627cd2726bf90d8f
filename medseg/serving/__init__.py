"""A model behind HTTP: a scan comes as a raw body, its mask goes back."""
