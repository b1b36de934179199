"""Worlds, one environment a file, behind the interface of `environment.py`."""
