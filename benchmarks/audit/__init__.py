"""How good and how fast the label audit is, and how much it takes: python -m benchmarks.audit."""
