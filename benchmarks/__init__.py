"""Measures boxloss beside what it could be compared with, on the same cores and under the same load."""
