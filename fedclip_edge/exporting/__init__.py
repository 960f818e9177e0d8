"""Export of image encoders to bundles, and of classifiers to single ONNX files.

Law: outside the demo, only this package imports open_clip and onnx.
"""
