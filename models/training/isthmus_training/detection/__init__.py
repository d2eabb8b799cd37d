"""Detectors: pictures with boxes, the network, what it learns and how it is measured."""
