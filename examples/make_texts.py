"""Cuts the bundled texts out of their sources (examples/README.md names them). python make_texts.py FOLDER_OF_SOURCES"""

import json
import sys
from pathlib import Path

sources = Path(sys.argv[1])
here = Path(__file__).parent


def head(text, size):
    """The first `size` bytes of a text, up to the end of a paragraph, or of a line where there are no paragraphs."""
    cut = text.encode()[:size].decode(errors="ignore")
    end = max(cut.rfind("\n\n"), cut.rfind("\n \n"))
    return cut[: (end if end >= 0 else cut.rfind("\n")) + 1]


def read(name):
    return (sources / name).read_text(encoding="utf-8")


wiki = read("wikitext2/valid.txt").split("\n = ")  # a line " = Title = " opens an article, " = = " a section
middle = next(i for i in range(len(wiki) // 2, len(wiki)) if not wiki[i].startswith("= ")) if len(wiki) > 1 else 0
first, second = "\n = ".join(wiki[:middle]) + "\n", " = " + "\n = ".join(wiki[middle:])
stories = [json.loads(line)["text"].strip() for line in read("tinystories/tinystories_v2.clean.jsonl").splitlines()]
texts = {
    "calibration/encyclopedia_1.txt": head(first, 220_000),
    "calibration/encyclopedia_2.txt": head(second, 220_000),
    "calibration/stories.txt": head("\n\n".join(stories[:400]), 220_000),
    "calibration/novel.txt": head(read("wizard_of_oz.txt"), 220_000),
    "calibration/drama.txt": head(read("tinyshakespeare.txt"), 220_000),
    "stories/calibration.txt": head("\n\n".join(stories[400:]), 220_000),
    "stories/test.txt": head(read("tinystories/tinystories_val.txt"), 120_000),
}
for name, text in texts.items():
    (here / name).write_text(text, encoding="utf-8")
    print(name, len(text.encode()))
