"""Trained detectors as files of ONNX, OpenVINO and `torch.export`, compared with the detector before they are kept."""
