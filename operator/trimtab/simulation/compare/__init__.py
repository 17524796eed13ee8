"""Scaling policies side by side on one trace: a fluid fleet, faithful baselines, the clairvoyant optimum, a report."""
