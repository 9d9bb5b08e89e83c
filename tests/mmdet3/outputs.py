"""What programs print on MMDetection 3."""

import subprocess


def printed(result: "subprocess.CompletedProcess[str]") -> str:
    """The standard output without what onedl-mmdetection says when it is imported."""
    return result.stdout.replace("Could not import OneDL. Skipping OneDL datasets.\n", "")
