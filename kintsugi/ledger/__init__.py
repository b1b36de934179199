"""The ledger: where everything that happened in a run is kept, and found again.

`Ledger.open(run_folder)` opens or creates `<run>/ledger.sqlite` (or a PostgreSQL database by URL). `tables.py` has the
schema, `rows.py` turns records into rows and back, `database.py` opens the database and puts its errors into words,
`audit.py` counts and checks, `lineage.py` traces a training row back, `export.py` writes TRL-ready JSONL.
"""

from kintsugi.ledger.audit import Tally
from kintsugi.ledger.export import EXPORT_KINDS, export
from kintsugi.ledger.ledger import DatasetKey, Event, Ledger
from kintsugi.ledger.lineage import Lineage, Use

__all__ = ["EXPORT_KINDS", "DatasetKey", "Event", "Ledger", "Lineage", "Tally", "Use", "export"]
