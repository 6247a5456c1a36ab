"""The regression simulation of the DIoU paper: gradient descent moves 1,715,000 boxes onto their targets.

Run it with boxloss-server and matplotlib installed: `python -m examples.simulation --help`. docs/simulation.md shows
and discusses what it gives.

Zheng et al., Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020, arXiv:1911.08287.
"""
