"""The demo with several seeds: held-out success against its control, with intervals.

    python benchmarks/demo.py --seeds 3
"""

from __future__ import annotations

from compare import main

if __name__ == "__main__":
    main(default_recipes=("demo",))
