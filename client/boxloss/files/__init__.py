"""Files of boxes: what labeling tools and models write (`formats`), what they read (`exports`), and reports."""
