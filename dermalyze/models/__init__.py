"""Backbones by timm's name, two heads, the classifier."""
