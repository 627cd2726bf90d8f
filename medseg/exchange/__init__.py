"""Models in and out: nnU-Net, MONAI bundle, ONNX, containers, light models."""
