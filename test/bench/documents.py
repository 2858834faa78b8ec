"""What the tasks of test/tasks do to PDFs, without them: one page after another,
in one process, with one session of the database.

documents.py OUT PDF...; writes the statements that index the pages to standard
output, for psql.
"""

import json
import pathlib
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tasks" / "pdf"))
import pdf  # noqa: E402

for name in sys.argv[2:]:
    out = str(pathlib.Path(sys.argv[1]) / pathlib.Path(name).stem)
    for part in pdf.count({"pdf": name})["parts"]:
        done = pdf.pages({"pdf": name, "out": out, "part": part})["pages"]
        row = json.dumps({"document": name, "pages": done})
        print("SELECT docs.index_pages('" + row.replace("'", "''") + "');", flush=True)
    pdf.zip_all({"out": out})
