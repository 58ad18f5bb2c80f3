"""Settings: what they are, and how a YAML file becomes them."""
