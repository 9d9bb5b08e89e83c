"""YOLOX's arithmetic of training and evaluation: torch, numpy, OpenCV, pycocotools and yolox_ops, no host."""
