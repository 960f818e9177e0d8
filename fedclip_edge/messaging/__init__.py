"""What is said between devices and coordinator, and how it travels; no torch, no onnxruntime."""
