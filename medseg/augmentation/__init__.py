"""Random changes of patches: what is drawn, and the tensor operations that do it on any device."""
