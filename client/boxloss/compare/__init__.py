"""Which loss for these boxes: all losses over the same pairs. It needs the extra: pip install 'boxloss[audit]'."""
