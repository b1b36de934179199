"""Policies, one implementation a file (`*_policy.py`), behind the interface of `policy.py`."""
