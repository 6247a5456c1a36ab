"""The boxloss server: losses, the engine that computes them, batching, and the gRPC service."""

__version__ = "0.1.0"
