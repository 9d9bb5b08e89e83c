"""The commands on MMDetection 3: its configs, their checks, training and evaluation."""
