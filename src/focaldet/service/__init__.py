"""A trained detector as a web service: a page for people, `POST /predict`, and the Open Inference Protocol v2.

A request passes `guard.py` (token, errors, metrics), then `uploads.py` (bytes within limits), then `pipeline.py`
(decoding and batches). The answer is made by `answers.py` or `inference_protocol.py`; `app.py` puts the parts together
and `server.py` runs them.
"""
