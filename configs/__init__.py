"""Shipped YAML configs, read as package data."""
