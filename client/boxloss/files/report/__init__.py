"""The report of an audit: one HTML file that needs nothing else. It needs the extra: pip install 'boxloss[audit]'."""

from boxloss.files.report.page import Report, render

__all__ = ["Report", "render"]
