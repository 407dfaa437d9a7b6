"""Write the Colab badge of each tutorial, or take it away: `repository` in settings.ini says where the badge leads

    python tools/badges.py
"""
import re
from configparser import ConfigParser
from pathlib import Path
from fastcore.nbio import read_nb, write_nb

root = Path(__file__).parent.parent
mark = '[![Open in Colab]'
colab = 'https://colab.research.google.com'
github = 'https://github.com/'


def repository() -> str:
    "Where settings.ini says that the repository is; '' where it says nothing"
    cfg = ConfigParser(delimiters='=')
    cfg.read(root/'settings.ini')
    return cfg['DEFAULT']['repository'].strip().rstrip('/')


def badge(
    repository: str, # its address
    page: str, # path of a notebook in it
) -> str: # a line of markdown; '' where Colab cannot find the notebook
    "A badge that opens a notebook in Colab, and what to type there first"
    if not repository.startswith(github): return ''
    place = repository.removeprefix(github)
    picture = f'{mark}({colab}/assets/colab-badge.svg)'
    return f'{picture}]({colab}/github/{place}/blob/main/{page}) Type there first: `%pip install git+{repository}`'


def with_badge(
    source: str, # of the notebook's first cell
    line: str, # from `badge`
) -> str:
    "The cell with this badge as its last paragraph, in the place of any other"
    kept = re.sub(rf'(?m)^{re.escape(mark)}.*$', '', source).rstrip()
    return f'{kept}\n\n{line}' if line else kept


def main():
    "Every tutorial, written only where something changes"
    for file in sorted((root/'nbs/tutorials').glob('[0-9]*.ipynb')):
        nb = read_nb(file)
        source = with_badge(nb.cells[0].source, badge(repository(), file.relative_to(root).as_posix()))
        if source==nb.cells[0].source: continue
        nb.cells[0].source = source
        write_nb(nb, file)


if __name__=='__main__': main()
