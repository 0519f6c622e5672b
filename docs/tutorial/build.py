"""Execute chapters, and store what they show in their notebooks: `make tutorial`.

python docs/tutorial/build.py              all of them
python docs/tutorial/build.py 1 2          some, by their numbers
"""

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1]))

from checkpoints.atomic import atomic_write


def build(chapter: Path) -> None:
    """Write the notebook of a text file, with outputs that are the same each time it is executed."""
    notebook = jupytext.read(chapter)
    options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}, **options).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # otherwise random
        logs = {"stderr"}  # progress is for those who wait
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") not in logs]
    with atomic_write(chapter.with_suffix(".ipynb")) as tmp_path:
        tmp_path.write_text(jupytext.writes(notebook, "ipynb"), encoding="utf-8")


if __name__ == "__main__":
    for chapter in sorted(FOLDER.glob("[0-9]_*.py")):
        if not sys.argv[1:] or chapter.name[0] in sys.argv[1:]:
            print(chapter.name, flush=True)
            build(chapter)
