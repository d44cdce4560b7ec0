"""A trained model as an ONNX file: its graph, the file, and the comparison with PyTorch."""
