"""Saliency methods: one file per method."""
