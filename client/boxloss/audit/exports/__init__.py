"""Labels and findings as files for other tools."""

from boxloss.audit.exports.coco import write_coco
from boxloss.audit.exports.cvat import write_cvat
from boxloss.audit.exports.labelstudio import write_labelstudio

__all__ = ["write_coco", "write_cvat", "write_labelstudio"]
