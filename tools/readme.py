"""Write README.md from nbs/index.ipynb (markdown cells, code cells, their text and picture-free outputs); `--check`
only compares."""
import re, sys
from pathlib import Path
from fastcore.nbio import read_nb

root = Path(__file__).parent.parent
readme = root/'README.md'


def output_text(output) -> str:
    "The text of one notebook output, HTML tables as they are"
    data = output.get('data', {})
    text = output.get('text') or data.get('text/markdown', data.get('text/plain')) or '' # Markdown may be empty
    return ''.join(text).rstrip()


def cell_markdown(cell) -> str:
    "One cell as markdown; cells marked `#| hide` are left out"
    source = cell.source.strip()
    if not source or '#| hide' in source or '#| default_exp' in source: return ''
    if cell.cell_type == 'markdown': return source
    code = '\n'.join(o for o in source.splitlines() if not o.startswith('#|'))
    shown = '\n'.join(filter(None, map(output_text, cell.get('outputs', []))))
    markdown = any('text/markdown' in o.get('data', {}) for o in cell.get('outputs', []))
    shown = shown if markdown or not shown else '\n'.join('    ' + o for o in shown.splitlines())
    only_output = '#| echo: false' in source
    return '\n\n'.join(filter(None, ['' if only_output else f'```python\n{code.strip()}\n```', shown]))


def main() -> int:
    "Write or check README.md"
    cells = map(cell_markdown, read_nb(root/'nbs/index.ipynb').cells)
    text = '<!-- made from nbs/index.ipynb by tools/readme.py -->\n\n' + '\n\n'.join(filter(None, cells)) + '\n'
    # links from nbs/ to links from the root
    text = re.sub(r'\]\((?!\w+:|\.\./|#)', '](nbs/', text).replace('](../', '](')
    if '--check' not in sys.argv: readme.write_text(text)
    elif not readme.exists() or readme.read_text() != text:
        print('README.md differs from nbs/index.ipynb: run python tools/readme.py', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__': sys.exit(main())
