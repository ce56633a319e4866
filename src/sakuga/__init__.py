"""Sakuga: an elastic Ray farm that tunes, serves and bulk-renders Wan video models."""

__version__ = "0.1.0"
