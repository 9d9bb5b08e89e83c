"""The commands on MMDetection 2.28: its configs, their checks, training and evaluation."""
