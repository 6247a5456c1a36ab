"""Label audit: which labels are wrong, and how sure that is.

>>> from boxloss.audit import Image, Labels, Predictions, audit
>>> for image in audit(images):
...     print(image.findings)

`boxloss.Client.audit` does the same on a server, and `boxloss.audit.ray.audit_on_ray` on a Ray cluster.
"""

from boxloss.audit.agreement import Agreement, Agreements
from boxloss.audit.corrections import corrected
from boxloss.audit.dataset import AsyncAudit, Audit, audit
from boxloss.audit.finding import Finding, Kind
from boxloss.audit.image import Id, Image, Labels, Predictions
from boxloss.audit.rules import ImageAudit, Match, Rules, audit_image
from boxloss.audit.summary import ClassSummary, Summary

__all__ = [
    "Agreement",
    "Agreements",
    "AsyncAudit",
    "Audit",
    "ClassSummary",
    "Finding",
    "Id",
    "Image",
    "ImageAudit",
    "Kind",
    "Labels",
    "Match",
    "Predictions",
    "Rules",
    "Summary",
    "audit",
    "audit_image",
    "corrected",
]
