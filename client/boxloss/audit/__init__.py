"""Label audit: which labels are wrong, and how sure that is."""
