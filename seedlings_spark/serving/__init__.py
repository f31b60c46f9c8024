"""Model versions behind HTTP on one machine: TensorFlow Serving's JSON, a page, health and metrics.

ONNX Runtime computes. The server is Starlette on Uvicorn, which are an extra, as is the client of Prometheus.
"""
