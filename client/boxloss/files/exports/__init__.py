"""Labels and findings as files for other tools."""

from boxloss.files.exports.coco import write_coco
from boxloss.files.exports.cvat import write_cvat
from boxloss.files.exports.labelstudio import write_labelstudio

__all__ = ["write_coco", "write_cvat", "write_labelstudio"]
