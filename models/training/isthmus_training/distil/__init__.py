"""A split network learnt from an ONNX file and pictures without labels: it imitates the file's network."""
