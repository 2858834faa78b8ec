#!/usr/bin/env python3
"""Take a PDF apart with poppler's programs.

  {"do": "count", "pdf": FILE}     -> {"pages": N, "parts": [[1, 8], [9, 16], ...]}
  {"do": "pages", "pdf": FILE, "out": FOLDER, "part": [FIRST, LAST]}
                                   -> {"pages": [{"page": N, "text": ...}, ...]}
  {"do": "zip", "out": FOLDER}     -> {"zip": FILE, "files": N}

Each can be done again: it replaces what was there.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

# Pages to a part: enough that starting the program does not count.
PART = 8


def poppler(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode("utf-8", "replace")


def progress(fraction, message):
    print(f"orchestrator: {fraction:.2f} {message}", file=sys.stderr, flush=True)


def count(task):
    pages = int(re.search(r"^Pages: +(\d+)$", poppler("pdfinfo", task["pdf"]), re.MULTILINE).group(1))
    return {"pages": pages, "parts": [[first, min(first + PART - 1, pages)] for first in range(1, pages + 1, PART)]}


def page(pdf, out, number):
    name = out / f"page-{number:04}"
    which = ("-f", str(number), "-l", str(number))
    text = poppler("pdftotext", *which, "-layout", "-enc", "UTF-8", pdf, "-").replace("\0", "")
    name.with_suffix(".txt").write_text(text, encoding="utf-8")
    poppler("pdfimages", *which, "-png", pdf, str(name))
    poppler("pdftoppm", *which, "-r", "100", "-jpeg", "-singlefile", pdf, str(name))
    return {"page": number, "text": text}


def pages(task):
    out = pathlib.Path(task["out"])
    out.mkdir(parents=True, exist_ok=True)
    first, last = task["part"]
    done = []
    for number in range(first, last + 1):
        done.append(page(task["pdf"], out, number))
        progress(len(done) / (last - first + 1), f"page {number}")
    return {"pages": done}


def zip_all(task):
    out = pathlib.Path(task["out"])
    files = sorted(path for path in out.iterdir() if path.suffix in (".txt", ".png", ".jpg"))
    part = out.with_suffix(".zip.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for done, path in enumerate(files, 1):
            archive.write(path, path.name)
            if done % 50 == 0:
                progress(done / len(files), f"{done} of {len(files)} files")
    os.replace(part, out.with_suffix(".zip"))
    return {"zip": str(out.with_suffix(".zip")), "files": len(files)}


WHAT = {"count": count, "pages": pages, "zip": zip_all}

if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump(WHAT[request["do"]](request), sys.stdout)
