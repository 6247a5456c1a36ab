"""The same loss behind other servers, in an environment of their own.

Each takes a POST of float32 bytes, predictions then targets, both of shape (N, 4), and answers the float32 bytes of
losses (N,), IoUs (N,) and gradients (N, 4).
"""
