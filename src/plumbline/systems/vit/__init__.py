"""Vision transformers and the dense heads on top of them, as VGGT and DepthSplat have them both. No system of its own."""
