"""Networks: kind to network, and which arithmetic a device has."""
