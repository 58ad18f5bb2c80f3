"""The pixel store: every usable image, decoded once."""
