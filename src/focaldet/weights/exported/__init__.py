"""Exported detectors: files of ONNX, OpenVINO and `torch.export` that hold a whole pipeline, opened as a `Detector`.

They are weights files of a kind: `load_detector` opens them, so that all that takes a run folder takes them too. The
network of torch is not built for them, and of onnxruntime and openvino only the one that the file needs is imported.
"""
