"""From a PyTorch model to a bundle; the only importer of open_clip and onnx."""
