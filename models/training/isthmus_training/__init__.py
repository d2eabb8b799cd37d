"""Trains a classifier that is cut for two machines, and exports it as an Isthmus bundle."""
